// Builds programs from the end to the beginning: each piece is told where the text goes on after it
// and says where it begins. Owns the limits that keep a hostile schema small, UTF-8, and how JSON
// spells characters.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "grammar/program.h"

namespace tessera::grammar {

// Ranges of code points, both ends included, ascending and apart.
using CodePoints = std::vector<std::pair<uint32_t, uint32_t>>;
inline constexpr uint32_t kCodePointMax = 0x10ffff;
CodePoints normalized(CodePoints ranges);
CodePoints complement(const CodePoints& normalized);  // without surrogates, which are no characters

class Builder {
  public:
    // All instructions and edges together. Throws Error beyond it.
    static constexpr size_t kSizeMax = 500'000;

    Builder();

    // ---- pieces: each returns where it begins

    Place bytes(std::string_view text, Place next);
    Place set(const ByteSet& set, Place next);
    Place either(std::vector<Place> places);  // one or more; equal ones count once
    Place edges(std::vector<Edge> edges);
    Place marker(std::string_view spelling, Place next);

    // Any of the texts, sharing what they begin with. Not empty.
    Place any_of(std::vector<std::string> texts, Place next);

    // `low` to `high` times `piece`, unrolled; `high` may be kUnbounded. `piece` makes one copy.
    template <typename Piece>
    Place repeated(const Piece& piece, uint32_t low, uint32_t high, Place next);

    // `low` to `high` items, counted on the stack, with `separator` between them. `item` makes one
    // copy.
    template <typename Item>
    Place list(const Item& item, std::string_view separator, uint32_t low, uint32_t high,
               Place next);

    // A JSON string of `low` to `high` characters, quotes and all.
    Place text(uint32_t low, uint32_t high, Place next) {
        return bytes("\"", text_inside(low, high, next));
    }
    Place text_inside(uint32_t low, uint32_t high, Place next);  // without the first quote

    // Any text up to `end`, which begins with < and has no other, and `end` itself.
    Place until(std::string_view end, Place next);

    // One character of these, as UTF-8: as a JSON string spells it, or as itself, but for <, which
    // may begin a tag.
    enum class Spelling : uint8_t { kJson, kRaw };
    Place character(const CodePoints& points, Spelling spelling, Place next);

    // ---- rules: pieces that stand once and are called from many places

    using Rule = uint32_t;
    Rule declare();
    // `make` is told where the rule ends, and says where it begins.
    template <typename Make>
    void define(Rule rule, const Make& make);
    Place call(Rule rule, Place next);

    // ---- the end

    Place end() const { return kEnd; }  // of the whole text, or of a rule
    // Links, and removes what no text can come to an end through. Throws Error if nothing is left,
    // or a rule begins with itself.
    Program finish(Place start, std::string source);

  private:
    static constexpr Place kEnd = 0;  // code[0] is kReturn
    static constexpr uint32_t kRepeatsMax = 10'000;
    static constexpr size_t kRulesMax = 1000;

    Place emit(const Instruction& instruction);
    Place emit_count(Place next);
    Place emit_split();
    void set_targets(Place split, std::initializer_list<Place> targets);
    uint32_t add_targets(std::span<const Place> places);
    uint32_t add_edges(std::span<const Edge> edges);
    void check_size() const;
    void refuse_repeats(uint32_t low, uint32_t high) const;
    Place byte_ranges(std::span<const std::pair<uint8_t, uint8_t>> ranges, Place next);
    void add_range(uint32_t first, uint32_t last, Place next, std::vector<Place>& into);
    Place any_of(std::span<const std::string> sorted, size_t depth, Place next);
    void make_characters();
    void prune();
    void refuse_left_recursion() const;

    Program program_;
    std::vector<Place> rules_;  // where each begins
};

// ------------------------------------------------------------------ templates

template <typename Piece>
Place Builder::repeated(const Piece& piece, uint32_t low, uint32_t high, Place next) {
    refuse_repeats(low, high);
    Place place = next;
    if (high == kUnbounded) {
        // A loop: its head is known before its body, which leads back to it.
        const Place head = emit_split();
        const Place body = piece(head);
        set_targets(head, {body, next});
        place = head;
    } else {
        for (uint32_t i = low; i < high; ++i) place = either({piece(place), next});
    }
    for (uint32_t i = 0; i < low; ++i) place = piece(place);
    return place;
}

template <typename Item>
Place Builder::list(const Item& item, std::string_view separator, uint32_t low, uint32_t high,
                    Place next) {
    if (high == 0) return next;
    if (high == kUnbounded && low <= 1) {
        const Place head = emit_split();
        const Place one = item(head);
        set_targets(head, {bytes(separator, one), next});
        return low == 0 ? either({one, next}) : one;
    }
    Instruction loop;
    loop.op = Op::kLoop;
    loop.low = low;
    loop.high = high;
    loop.next = next;
    const Place head = emit(loop);
    const Place one = item(head), again = bytes(separator, one);
    program_.code[head].first = one;
    program_.code[head].more = again;
    return emit_count(head);
}

template <typename Make>
void Builder::define(Rule rule, const Make& make) {
    const Place begin = make(kEnd);
    rules_[rule] = begin;
}

}  // namespace tessera::grammar
