#include "text/split.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/error.h"

namespace tessera {
namespace {

inline constexpr size_t kPatternBytesMax = 16384;  // published patterns have about 150

struct Free {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
    void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
    void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

// In the published dialect \s is Unicode's White_Space; PCRE2's adds U+180E, which stopped being a
// space in Unicode 6.3.
std::string unicode_spaces(std::string_view pattern) {
    std::string out;
    for (size_t i = 0; i < pattern.size(); ++i) {
        if (pattern[i] != '\\' || i + 1 == pattern.size()) {
            out += pattern[i];
            continue;
        }
        const char escaped = pattern[++i];
        if (escaped == 's') {
            out += "\\p{White_Space}";
        } else if (escaped == 'S') {
            out += "\\P{White_Space}";
        } else {
            out += '\\';
            out += escaped;
        }
    }
    return out;
}

std::string message_of(int error) {
    PCRE2_UCHAR buffer[256];
    const int length = pcre2_get_error_message(error, buffer, sizeof buffer);
    return length < 0
               ? "unknown error"
               : std::string(reinterpret_cast<const char*>(buffer), static_cast<size_t>(length));
}

}  // namespace

struct Splitter::Pattern {
    std::unique_ptr<pcre2_code, Free> code;
    bool compiled_to_machine_code = false;
};

Splitter::Splitter(std::string_view pattern, std::string_view source) {
    if (pattern.size() > kPatternBytesMax) {
        fail("{}: the pre-tokenizer pattern has {} bytes, at most {} are accepted", source,
             pattern.size(), kPatternBytesMax);
    }
    const std::string dialect = unicode_spaces(pattern);
    int error = 0;
    PCRE2_SIZE offset = 0;
    auto own = std::make_unique<Pattern>();
    own->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(dialect.data()), dialect.size(),
                                  PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset,
                                  nullptr));
    if (!own->code) {
        fail("{}: the pre-tokenizer pattern does not compile: {} at byte {}", source,
             message_of(error), static_cast<size_t>(offset));
    }
    uint32_t matches_empty = 0;
    pcre2_pattern_info(own->code.get(), PCRE2_INFO_MATCHEMPTY, &matches_empty);
    if (matches_empty != 0) {
        fail("{}: the pre-tokenizer pattern can match nothing, expected one that consumes text",
             source);
    }
    own->compiled_to_machine_code = pcre2_jit_compile(own->code.get(), PCRE2_JIT_COMPLETE) == 0;
    pattern_ = std::move(own);
}

Splitter::~Splitter() = default;
Splitter::Splitter(Splitter&&) noexcept = default;
Splitter& Splitter::operator=(Splitter&&) noexcept = default;

void Splitter::split(std::string_view text,
                     const std::function<void(std::string_view)>& word) const {
    const std::unique_ptr<pcre2_match_data, Free> found(pcre2_match_data_create(1, nullptr));
    const std::unique_ptr<pcre2_match_context, Free> limits(pcre2_match_context_create(nullptr));
    // The worst text for the Qwen2 pattern, a run of spaces, takes one step a byte in one search
    // (measured, machine code and interpreter); the constant lets short texts backtrack a little.
    const uint64_t steps_max = 10'000 + uint64_t{64} * text.size();
    pcre2_set_match_limit(limits.get(),
                          static_cast<uint32_t>(std::min<uint64_t>(steps_max, UINT32_MAX)));
    const auto match = [&](size_t from) {
        const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
        const pcre2_code* code = pattern_->code.get();
        int count = PCRE2_ERROR_JIT_STACKLIMIT;
        if (pattern_->compiled_to_machine_code) {
            count = pcre2_jit_match(code, subject, text.size(), from, 0, found.get(), limits.get());
        }
        if (count == PCRE2_ERROR_JIT_STACKLIMIT) {
            count = pcre2_match(code, subject, text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                                found.get(), limits.get());
        }
        return count >= 0;
    };
    size_t done = 0;
    while (done < text.size() && match(done)) {
        const PCRE2_SIZE* span = pcre2_get_ovector_pointer(found.get());
        // \K and lookbehind tricks can put a match before its start; such a one ends the cutting.
        if (span[0] < done || span[1] <= span[0] || span[1] > text.size()) break;
        if (span[0] > done) word(text.substr(done, span[0] - done));
        word(text.substr(span[0], span[1] - span[0]));
        done = span[1];
    }
    if (done < text.size()) word(text.substr(done));
}

}  // namespace tessera
