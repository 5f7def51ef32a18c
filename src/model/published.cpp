#include "model/published.h"

#include <string>

namespace tessera {
namespace {

Json config_of(const char* text) {
    Json config = parse_json(text, "published", {.trailing_commas = true});
    // The releases list every layer's o_proj.
    Json names = Json::array();
    for (uint32_t i = 0; i < config["num_hidden_layers"].get<uint32_t>(); ++i)
        names.push_back("model.layers." + std::to_string(i) + ".self_attn.o_proj");
    config["quantization_config"]["ignored_layers"] = std::move(names);
    return config;
}

}  // namespace

std::optional<PublishedModel> published_model(std::string_view name) {
    if (name == "mimo-v2-flash")
        return PublishedModel{parse_shape(config_of(kFlashConfig), name), std::nullopt};
    if (name != "mimo-v2.5-pro") return std::nullopt;
    Json config = config_of(kProConfig);
    config["quantization_config"]["store_dtype"] = "mxfp4";
    config["quantization_config"]["mxfp4_block_size"] = 32;
    const Shape shape = parse_shape(config, name);
    return PublishedModel{shape,
                          parse_drafter_shape(parse_json(kProDrafterConfig, name), shape, name)};
}

}  // namespace tessera
