// config.json, dflash/config.json and generation_config.json: any bytes give a shape or an Error.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "base/error.h"
#include "base/json.h"
#include "model/generation.h"
#include "model/shape.h"

namespace {

using namespace tessera;

// Calls `read`; an Error is an answer too, anything else is a finding.
template <typename Read>
void try_read(const Read& read) {
    try {
        read();
    } catch (const Error&) {
    }
}

// What everything behind the door relies on.
void check_attention(const AttentionShape& a) {
    CHECK(a.kv_heads > 0 && a.heads % a.kv_heads == 0);
    CHECK(a.rotary_dims % 2 == 0 && a.rotary_dims <= a.head_dim);
}

void check_shape(const Shape& s) {
    check_attention(s.full);
    check_attention(s.sliding);
    CHECK(s.is_sliding.size() == s.layers && s.is_moe.size() == s.layers);
    CHECK(s.experts_per_token >= 1 && s.experts_per_token <= s.experts);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    JsonLimits limits;
    limits.trailing_commas = true;
    try_read([&] {
        const Json config = parse_json(text, "file", limits);
        try_read([&] { parse_generation(config, 4096, "file"); });
        try_read([&] { check_shape(parse_shape(config, "file")); });
        Shape target{};
        target.hidden = 384;
        target.layers = 11;
        try_read([&] { check_attention(parse_drafter_shape(config, target, "file").attention); });
    });
    return 0;
}
