// Compiles schemas into pieces of one program: what schema.cpp and calls.cpp share.
#pragma once

#include <deque>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "grammar/builder.h"
#include "grammar/schema.h"

namespace tessera::grammar {

class Compiler {
  public:
    // `root`: what $ref leads into; it and `builder` outlive this.
    Compiler(Builder& builder, const Schema& root) : builder_(builder), root_(root) {}

    // A value of this schema, then `next`. All throw Error, naming `path`.
    Place value(const Schema& schema, const std::string& path, Place next);

    // The same as raw text instead of JSON, for values that are strings: without quotes and
    // escapes. None if the schema says nothing of its text.
    std::optional<Place> raw(const Schema& schema, const std::string& path, Place next);

    // Defines what was referred to: after the last piece, before Builder::finish().
    void finish();

  private:
    static constexpr uint32_t kAnyDepth = 24;  // of values that no schema describes

    Place any_object(uint32_t depth, Place next);
    void check_keywords(const Schema& schema, const std::string& path) const;
    Place typed(const Schema& schema, const std::string& type, const std::string& path, Place next);
    Place alternatives(const Schema& branches, const std::string& path, Place next);
    Place reference(const std::string& to, const std::string& path, Place next);
    const Schema& resolve(const std::string& to, const std::string& path) const;
    Place listed(const Schema& values, const Schema& schema, Place next);
    Place any_value(uint32_t depth, Place next);
    Place any_number(bool whole, Place next);
    Place object(const Schema& schema, const std::string& path, Place next);
    Place other_key(std::span<const std::string> sorted, size_t depth, Place free, Place next);
    Place array(const Schema& schema, const std::string& path, Place next);
    Place string(const Schema& schema, const std::string& path, Place next);
    Place number(const Schema& schema, bool whole, const std::string& path, Place next);
    void check_exclusive(const Schema& branches, const std::string& path) const;

    Builder& builder_;
    const Schema& root_;
    std::map<std::string, Builder::Rule> references_;
    std::deque<std::pair<std::string, Builder::Rule>> undefined_;
    std::vector<Builder::Rule> any_;  // by how deep they nest
    std::optional<Builder::Rule> number_, whole_;
};

// ---- numbers.cpp

// Whole numbers, or any, between two bounds (none: no bound).
struct Bound {
    int64_t value = 0;
    bool excluded = false;
};
Place whole_numbers(Builder& builder, std::optional<Bound> low, std::optional<Bound> high,
                    Place next);
Place numbers(Builder& builder, std::optional<Bound> low, std::optional<Bound> high, Place next);

}  // namespace tessera::grammar
