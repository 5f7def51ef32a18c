#include "grammar/builder.h"

#include <algorithm>
#include <bit>

#include <fmt/format.h>

#include "base/check.h"
#include "base/error.h"

namespace tessera::grammar {
namespace {

constexpr uint32_t kSurrogateFirst = 0xd800, kSurrogateLast = 0xdfff;

// How JSON spells a character that may not stand as itself; empty for all others.
std::string json_escape(uint32_t point) {
    constexpr std::string_view kNamed = "\"\\\b\f\n\r\t", kLetters = "\"\\bfnrt";
    if (point < 0x80) {
        const size_t at = kNamed.find(static_cast<char>(point));
        if (at != kNamed.npos) return {'\\', kLetters[at]};
    }
    return point < 0x20 ? fmt::format("\\u{:04x}", point) : std::string();
}

constexpr std::array<uint32_t, 4> kLastOfLength = {0x7f, 0x7ff, 0xffff, kCodePointMax};

std::string utf8(uint32_t point) {
    const auto byte = [](uint32_t value) { return static_cast<char>(value); };
    const auto rest = [&](uint32_t shift) { return byte(0x80 | (point >> shift & 0x3f)); };
    if (point <= kLastOfLength[0]) return {byte(point)};
    if (point <= kLastOfLength[1]) return {byte(0xc0 | point >> 6), rest(0)};
    if (point <= kLastOfLength[2]) return {byte(0xe0 | point >> 12), rest(6), rest(0)};
    return {byte(0xf0 | point >> 18), rest(12), rest(6), rest(0)};
}

}  // namespace

int ByteSet::only() const {
    int found = -1, count = 0;
    for (int i = 0; i < 4; ++i) {
        count += std::popcount(words_[i]);
        if (words_[i] != 0) found = 64 * i + std::countr_zero(words_[i]);
    }
    return count == 1 ? found : -1;
}

CodePoints normalized(CodePoints ranges) {
    std::ranges::sort(ranges);
    CodePoints joined;
    for (const auto& [first, last] : ranges) {
        if (!joined.empty() && first <= joined.back().second + 1) {
            joined.back().second = std::max(joined.back().second, last);
        } else {
            joined.emplace_back(first, last);
        }
    }
    return joined;
}

CodePoints complement(const CodePoints& normalized) {
    CodePoints taken = normalized;
    taken.emplace_back(kSurrogateFirst, kSurrogateLast);
    CodePoints rest;
    uint32_t begin = 0;
    for (const auto& [first, last] : grammar::normalized(std::move(taken))) {
        if (first > begin) rest.emplace_back(begin, first - 1);
        begin = last + 1;
    }
    if (begin <= kCodePointMax) rest.emplace_back(begin, kCodePointMax);
    return rest;
}

Builder::Builder() {
    program_.code.emplace_back();  // kEnd
    make_characters();
}

// ------------------------------------------------------------------ pieces

Place Builder::emit(const Instruction& instruction) {
    program_.code.push_back(instruction);
    check_size();
    return static_cast<Place>(program_.code.size() - 1);
}

Place Builder::emit_count(Place next) {
    Instruction count;
    count.op = Op::kCount;
    count.next = next;
    return emit(count);
}

// One whose targets are not known yet.
Place Builder::emit_split() {
    Instruction split;
    split.op = Op::kSplit;
    return emit(split);
}

void Builder::set_targets(Place split, std::initializer_list<Place> targets) {
    program_.code[split].first = add_targets(std::span(targets.begin(), targets.size()));
    program_.code[split].count = static_cast<uint32_t>(targets.size());
}

void Builder::check_size() const {
    if (program_.code.size() + program_.edges.size() + program_.targets.size() > kSizeMax)
        fail("the schema is too large: it needs more than {} states", kSizeMax);
}

void Builder::refuse_repeats(uint32_t low, uint32_t high) const {
    if (low > kRepeatsMax || (high != kUnbounded && high > kRepeatsMax))
        fail("a repetition of more than {} times is too large", kRepeatsMax);
}

uint32_t Builder::add_targets(std::span<const Place> places) {
    const auto first = static_cast<uint32_t>(program_.targets.size());
    program_.targets.insert(program_.targets.end(), places.begin(), places.end());
    check_size();
    return first;
}

uint32_t Builder::add_edges(std::span<const Edge> edges) {
    const auto first = static_cast<uint32_t>(program_.edges.size());
    program_.edges.insert(program_.edges.end(), edges.begin(), edges.end());
    check_size();
    return first;
}

Place Builder::bytes(std::string_view text, Place next) {
    for (size_t i = text.size(); i-- > 0;) {
        Instruction one;
        one.op = Op::kByte;
        one.byte = static_cast<uint8_t>(text[i]);
        one.next = next;
        next = emit(one);
    }
    return next;
}

Place Builder::set(const ByteSet& set, Place next) {
    return edges({{set, next}});
}

Place Builder::edges(std::vector<Edge> edges) {
    Instruction all;
    all.op = Op::kEdges;
    all.first = add_edges(edges);
    all.count = static_cast<uint32_t>(edges.size());
    return emit(all);
}

Place Builder::either(std::vector<Place> places) {
    CHECK(!places.empty());
    std::ranges::sort(places);
    places.erase(std::unique(places.begin(), places.end()), places.end());
    if (places.size() == 1) return places[0];
    Instruction split;
    split.op = Op::kSplit;
    split.first = add_targets(places);
    split.count = static_cast<uint32_t>(places.size());
    return emit(split);
}

Place Builder::marker(std::string_view spelling, Place next) {
    std::vector<std::string>& markers = program_.markers;
    const auto known = std::ranges::find(markers, spelling);
    Instruction one;
    one.op = Op::kMarker;
    one.first = static_cast<uint32_t>(known - markers.begin());
    one.next = next;
    if (known == markers.end()) markers.emplace_back(spelling);
    return emit(one);
}

Place Builder::any_of(std::vector<std::string> texts, Place next) {
    CHECK(!texts.empty());
    std::ranges::sort(texts);
    texts.erase(std::unique(texts.begin(), texts.end()), texts.end());
    return any_of(texts, 0, next);
}

// Of sorted texts that are the same up to `depth`.
Place Builder::any_of(std::span<const std::string> sorted, size_t depth, Place next) {
    if (sorted.size() == 1) return bytes(std::string_view(sorted[0]).substr(depth), next);
    // The shortest is first, and may end here.
    const bool ends = sorted[0].size() == depth;
    // What all have in common is a chain, however long: only forks recurse.
    if (!ends) {
        const std::string &first = sorted.front(), &last = sorted.back();
        size_t same = depth;
        while (same < first.size() && same < last.size() && first[same] == last[same]) ++same;
        if (same > depth)
            return bytes(std::string_view(first).substr(depth, same - depth),
                         any_of(sorted, same, next));
    }
    std::vector<Edge> forks;
    for (size_t begin = ends ? 1 : 0; begin < sorted.size();) {
        const char byte = sorted[begin][depth];
        size_t end = begin;
        while (end < sorted.size() && sorted[end][depth] == byte) ++end;
        forks.push_back({ByteSet::of(static_cast<uint8_t>(byte)),
                         any_of(sorted.subspan(begin, end - begin), depth + 1, next)});
        begin = end;
    }
    const Place fork = edges(std::move(forks));
    return ends ? either({fork, next}) : fork;
}

Place Builder::text_inside(uint32_t low, uint32_t high, Place next) {
    Instruction text;
    text.op = Op::kText;
    text.low = low;
    text.high = high;
    text.next = next;
    const Place place = emit(text);
    return counts(text) ? emit_count(place) : place;
}

// States by how much of `end` has just been read. What breaks it off leads to the first, or, if it
// is another <, to the second.
Place Builder::until(std::string_view end, Place next) {
    CHECK(end.starts_with('<') && end.find('<', 1) == end.npos);
    const Place none = emit_split(), begun = emit_split();
    Place further = next;
    for (size_t i = end.size(); i-- > 0;) {
        const auto byte = static_cast<uint8_t>(end[i]);
        const Place on = edges({{ByteSet::of(byte), further}});
        const Place other = character(complement({{byte, byte}}), Spelling::kRaw, none);
        const Place again = edges({{ByteSet::of('<'), begun}});
        if (i == 1) set_targets(begun, {on, other, again});
        if (i == 0) set_targets(none, {edges({{ByteSet::of('<'), begun}}), other});
        further = either({on, other, again});
    }
    return none;
}

// ------------------------------------------------------------------ characters

// A sequence of byte ranges.
Place Builder::byte_ranges(std::span<const std::pair<uint8_t, uint8_t>> ranges, Place next) {
    for (size_t i = ranges.size(); i-- > 0;)
        next = set(ByteSet::range(ranges[i].first, ranges[i].second), next);
    return next;
}

// The spellings of code points first to last: split until a spelling is a range for each byte.
void Builder::add_range(uint32_t first, uint32_t last, Place next, std::vector<Place>& into) {
    for (const uint32_t edge : kLastOfLength) {
        if (first <= edge && last > edge) {
            add_range(first, edge, next, into);
            return add_range(edge + 1, last, next, into);
        }
    }
    if (last > kLastOfLength[0]) {
        // A byte below the first may take all of its values only if those below it do.
        for (uint32_t bits = 6; bits <= 18; bits += 6) {
            const uint32_t mask = (1u << bits) - 1;
            if ((first & ~mask) == (last & ~mask)) continue;
            if ((first & mask) != 0) {
                add_range(first, first | mask, next, into);
                return add_range((first | mask) + 1, last, next, into);
            }
            if ((last & mask) != mask) {
                add_range(first, (last & ~mask) - 1, next, into);
                return add_range(last & ~mask, last, next, into);
            }
        }
    }
    const std::string from = utf8(first), to = utf8(last);
    std::vector<std::pair<uint8_t, uint8_t>> ranges;
    for (size_t i = 0; i < from.size(); ++i)
        ranges.emplace_back(static_cast<uint8_t>(from[i]), static_cast<uint8_t>(to[i]));
    into.push_back(byte_ranges(ranges, next));
}

Place Builder::character(const CodePoints& points, Spelling spelling, Place next) {
    // Surrogates are no characters: what is left of the ranges without them.
    CodePoints rest = complement(points);
    if (spelling == Spelling::kRaw) rest.emplace_back('<', '<');
    const CodePoints sound = complement(normalized(std::move(rest)));
    if (sound.empty()) return edges({});
    ByteSet single;  // one byte each: one edge for them all
    std::vector<Place> places;
    for (const auto& [first, last] : sound) {
        for (uint32_t point = first; point <= std::min(last, kLastOfLength[0]); ++point) {
            const std::string escape = spelling == Spelling::kJson ? json_escape(point) : "";
            if (escape.empty()) {
                single = single | ByteSet::of(static_cast<uint8_t>(point));
            } else {
                places.push_back(bytes(escape, next));
            }
        }
        if (last > kLastOfLength[0])
            add_range(std::max(first, kLastOfLength[0] + 1), last, next, places);
    }
    if (!single.empty()) places.push_back(set(single, next));
    // Each is kByte or kEdges: all of them together are one step.
    std::vector<Edge> together;
    for (const Place place : places) {
        const Instruction& one = program_.code[place];
        if (one.op == Op::kByte) {
            together.push_back({ByteSet::of(one.byte), one.next});
        } else {
            together.push_back(program_.edges[one.first]);
        }
    }
    return edges(std::move(together));
}

// The insides of kText.
void Builder::make_characters() {
    const ByteSet hex =
        ByteSet::range('0', '9') | ByteSet::range('a', 'f') | ByteSet::range('A', 'F');
    const ByteSet d = ByteSet::of('d') | ByteSet::of('D');
    const Place two = set(hex, set(hex, kEnd));
    // \ud800 to \udfff would be halves of characters: those beyond 16 bits stand as themselves.
    const Place four = edges({{hex - d, set(hex, two)}, {d, set(ByteSet::range('0', '7'), two)}});
    ByteSet named;
    for (const char c : std::string_view("\"\\/bfnrt"))
        named = named | ByteSet::of(static_cast<uint8_t>(c));
    program_.escape = edges({{named, kEnd}, {ByteSet::of('u'), four}});

    const ByteSet rest = ByteSet::range(0x80, 0xbf);
    const Place one_more = set(rest, kEnd), two_more = set(rest, one_more);
    const Place three_more = set(rest, two_more);
    for (uint32_t byte = 0xc2; byte <= 0xf4; ++byte)
        program_.character[byte] = byte < 0xe0 ? one_more : byte < 0xf0 ? two_more : three_more;
    // No spelling is longer than it needs to be, none a surrogate, none too large.
    program_.character[0xe0] = set(ByteSet::range(0xa0, 0xbf), one_more);
    program_.character[0xed] = set(ByteSet::range(0x80, 0x9f), one_more);
    program_.character[0xf0] = set(ByteSet::range(0x90, 0xbf), two_more);
    program_.character[0xf4] = set(ByteSet::range(0x80, 0x8f), two_more);
}

// ------------------------------------------------------------------ rules

Builder::Rule Builder::declare() {
    if (rules_.size() == kRulesMax)
        fail("the schema is too large: more than {} parts are referred to", kRulesMax);
    rules_.push_back(kEnd);
    return static_cast<Rule>(rules_.size() - 1);
}

Place Builder::call(Rule rule, Place next) {
    Instruction call;
    call.op = Op::kCall;
    call.first = rule;
    call.next = next;
    return emit(call);
}

}  // namespace tessera::grammar
