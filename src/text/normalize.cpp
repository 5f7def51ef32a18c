#include "text/normalize.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include <utf8proc.h>

#include "base/check.h"

namespace tessera {
namespace {

// Below U+0300 every character is its own NFC and none is a mark; these lead bytes start it.
bool is_settled(char byte) {
    return static_cast<uint8_t>(byte) < 0xcc;
}

bool is_ascii(char byte) {
    return static_cast<uint8_t>(byte) < 0x80;
}

struct Mark {
    utf8proc_int32_t codepoint;
    utf8proc_propval_t order;  // canonical combining class
};

// Appends the canonical decomposition of `text`, marks in canonical order.
void decompose(std::string_view text, std::vector<utf8proc_int32_t>& out) {
    std::vector<Mark> marks;
    const auto settle = [&] {
        std::stable_sort(marks.begin(), marks.end(),
                         [](const Mark& a, const Mark& b) { return a.order < b.order; });
        for (const Mark& mark : marks) out.push_back(mark.codepoint);
        marks.clear();
    };
    const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
    for (size_t i = 0; i < text.size();) {
        utf8proc_int32_t whole = 0;
        const auto length =
            utf8proc_iterate(bytes + i, static_cast<utf8proc_ssize_t>(text.size() - i), &whole);
        CHECK(length > 0);
        i += static_cast<size_t>(length);
        utf8proc_int32_t parts[8];  // the longest canonical decomposition has 4
        int boundary = 0;
        const auto options = static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE | UTF8PROC_STABLE);
        const auto count = utf8proc_decompose_char(whole, parts, 8, options, &boundary);
        CHECK(count > 0 && count <= 8);
        for (utf8proc_ssize_t k = 0; k < count; ++k) {
            const auto order = utf8proc_get_property(parts[k])->combining_class;
            if (order > 0) {
                marks.push_back({parts[k], order});
                continue;
            }
            settle();
            out.push_back(parts[k]);
        }
    }
    settle();
}

void append_nfc(std::string_view text, std::vector<utf8proc_int32_t>& codepoints,
                std::string& out) {
    codepoints.clear();
    decompose(text, codepoints);
    const auto options = static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    const auto count = utf8proc_normalize_utf32(
        codepoints.data(), static_cast<utf8proc_ssize_t>(codepoints.size()), options);
    CHECK(count >= 0);
    for (utf8proc_ssize_t i = 0; i < count; ++i) {
        utf8proc_uint8_t encoded[4];
        const auto length = utf8proc_encode_char(codepoints[static_cast<size_t>(i)], encoded);
        out.append(reinterpret_cast<const char*>(encoded), static_cast<size_t>(length));
    }
}

}  // namespace

std::string_view nfc(std::string_view text, std::string& storage) {
    size_t settled = 0;  // bytes known to be in NFC and untouched by what follows
    const auto unsettled = [&](size_t from) {
        return static_cast<size_t>(std::find_if_not(text.begin() + static_cast<ptrdiff_t>(from),
                                                    text.end(),
                                                    [](char c) { return is_settled(c); }) -
                                   text.begin());
    };
    size_t next = unsettled(0);
    if (next == text.size()) return text;
    storage.clear();
    storage.reserve(text.size());
    std::vector<utf8proc_int32_t> codepoints;
    while (next < text.size()) {
        // A mark may join the character before it, so that one comes along; nothing ever composes
        // with an ASCII character that follows, so the piece ends before the next of those.
        size_t begin = next;
        while (begin > settled && (static_cast<uint8_t>(text[begin - 1]) & 0xc0) == 0x80) --begin;
        if (begin > settled) --begin;
        size_t end = next;
        while (end < text.size() && !is_ascii(text[end])) ++end;
        storage.append(text.substr(settled, begin - settled));
        append_nfc(text.substr(begin, end - begin), codepoints, storage);
        settled = end;
        next = unsettled(end);
    }
    storage.append(text.substr(settled));
    return storage;
}

}  // namespace tessera
