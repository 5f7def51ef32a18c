#include "model/generation.h"

#include "base/error.h"
#include "model/keys.h"

namespace tessera {

Generation parse_generation(const Json& config, uint32_t vocab, std::string_view source) {
    const Keys keys(config, source);
    Generation g;
    if (keys.has("eos_token_id")) {
        const Json& ends = keys.at("eos_token_id");
        const Json list = ends.is_array() ? ends : Json::array({ends});
        for (const Json& end : list)
            g.end_tokens.push_back(keys.count_of(end, "eos_token_id", 0, vocab - 1));
    }
    if (!keys.flag("do_sample", false)) return g;
    g.temperature = keys.has("temperature") ? keys.real("temperature", 0, 100) : 1.0f;
    if (keys.has("top_p")) g.top_p = keys.real("top_p", 1e-6, 1);
    if (keys.has("top_k")) g.top_k = keys.count("top_k", 0, 1u << 24);
    return g;
}

}  // namespace tessera
