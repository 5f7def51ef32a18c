// What single keywords of JSON Schema say, before any program is built.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "grammar/compiler.h"

namespace tessera::grammar {

// Whether a keyword restricts values; titles and the like do not.
bool says_something(std::string_view word);

// Whether a keyword with this value is one that the compiler heeds, or may pass over.
bool is_understood(std::string_view word, const Schema& value);

// The types of "type", or those that the schema's other keywords are about; none: any. Throws
// Error.
std::vector<std::string> types_of(const Schema& schema, const std::string& path);

// Whether "type", if there is one, allows `value`.
bool fits_type(const Schema& schema, const Schema& value);

// Whether no value fits both, as far as can be told from types and required constants.
bool exclude_each_other(const Schema& a, const Schema& b);

// A property of objects.
struct Property {
    std::string name;
    Schema schema;
    bool required;
};

// Those of "properties", in the schema's order but for those that nothing fits, then those that are
// "required" and not described: what `others` says holds for them. Throws Error.
std::vector<Property> properties_of(const Schema& schema, const Schema& others,
                                    const std::string& path);

// Whether the types that the schema names, or is about, have strings among them, or are none.
bool may_be_string(const Schema& schema);

// A value in the one spelling of schema.h.
std::string spelt(const Schema& value);

// minimum or exclusiveMinimum (`low`), maximum or exclusiveMaximum; the tighter of both. Throws
// Error; a fraction is fine for whole numbers alone.
std::optional<Bound> bound_of(const Schema& schema, bool low, bool whole, const std::string& path);

// Two counts, 0 and kUnbounded where they are absent. Throws Error.
std::pair<uint32_t, uint32_t> counts_of(const Schema& schema, const char* least, const char* most,
                                        const std::string& path);

// "pattern", or what "format" stands for; none if there is neither. Throws Error.
std::optional<std::string> pattern_of(const Schema& schema, const std::string& path);

// regex.h's, with the place in the schema in its errors.
Place pattern_at(Builder& builder, const std::string& pattern, Builder::Spelling spelling,
                 const std::string& path, Place next);

}  // namespace tessera::grammar
