#include "weights/inventory.h"

#include <algorithm>

#include "base/numbers.h"

namespace tessera {
namespace {

constexpr uint64_t blocks(uint64_t count, uint64_t block) {
    return (count + block - 1) / block;
}

// Vision and audio names are inferred from the omni siblings' listings: one line to extend.
constexpr std::string_view kSkippedPrefixes[] = {"model.mtp.", "visual.",      "model.visual.",
                                                 "vision_",    "audio_",       "model.audio_",
                                                 "speech_",    "model.speech_"};

// Collects tensors, with each linear layer in the format that the quantization asks for.
class List {
  public:
    explicit List(const Quantization& quantization) : quantization_(quantization) {}

    void plain(const std::string& name, Part part, std::vector<uint64_t> shape,
               std::vector<Dtype> dtypes = {Dtype::bf16, Dtype::f32}) {
        tensors.push_back({name, part, std::move(dtypes), std::move(shape)});
    }

    // A [rows, columns] linear layer of `chunks` equal chunks of rows, each with scales of its own.
    void linear(const std::string& module, Part part, uint64_t rows, uint64_t columns,
                uint64_t chunks = 1) {
        if (!quantization_.fp8 || quantization_.kept_in_bf16.contains(module)) {
            return plain(module + ".weight", part, {rows, columns});
        }
        plain(module + ".weight", part, {rows, columns}, {Dtype::e4m3});
        plain(module + ".weight_scale_inv", part,
              {chunks * blocks(rows / chunks, kFp8Block), blocks(columns, kFp8Block)},
              {Dtype::f32});
    }

    void expert(const std::string& module, uint64_t rows, uint64_t columns) {
        if (!quantization_.mxfp4_experts || quantization_.kept_in_bf16.contains(module)) {
            return linear(module, Part::experts, rows, columns);
        }
        plain(module + ".weight", Part::experts, {rows, columns / 2}, {Dtype::u8});
        plain(module + ".weight_scale", Part::experts, {rows, columns / kMxBlock}, {Dtype::u8});
    }

    void feed_forward(const std::string& module, Part part, uint64_t width, uint64_t hidden) {
        linear(module + ".gate_proj", part, width, hidden);
        linear(module + ".up_proj", part, width, hidden);
        linear(module + ".down_proj", part, hidden, width);
    }

    void attention(const std::string& module, const Shape& s, const AttentionShape& a, Part qkv,
                   Part o) {
        if (s.fused_qkv) {
            linear(module + ".qkv_proj", qkv, a.q_rows() + a.k_rows() + a.v_rows(), s.hidden,
                   s.qkv_chunks());
        } else {
            linear(module + ".q_proj", qkv, a.q_rows(), s.hidden);
            linear(module + ".k_proj", qkv, a.k_rows(), s.hidden);
            // V2-Flash pads the scales of k_proj on full layers from 6 rows to 8.
            if (tensors.back().name.ends_with("weight_scale_inv")) tensors.back().padded_rows = 8;
            linear(module + ".v_proj", qkv, a.v_rows(), s.hidden);
        }
        linear(module + ".o_proj", o, s.hidden, a.o_columns());
        if (a.sink) plain(module + ".attention_sink_bias", qkv, {a.heads});
    }

    std::vector<RequiredTensor> tensors;

  private:
    const Quantization& quantization_;
};

}  // namespace

std::string_view part_name(Part part) {
    switch (part) {
        case Part::embedding:
            return "embedding";
        case Part::head:
            return "head";
        case Part::norms:
            return "norms";
        case Part::qkv:
            return "qkv";
        case Part::o_proj:
            return "o_proj";
        case Part::router:
            return "router";
        case Part::dense:
            return "dense";
        case Part::experts:
            return "experts";
        case Part::mtp:
            return "mtp (skipped)";
        case Part::drafter:
            return "drafter";
    }
    return "";
}

uint64_t RequiredTensor::elements() const {
    uint64_t product = 1;
    for (const uint64_t extent : shape) product *= extent;
    return product;
}

std::vector<RequiredTensor> target_inventory(const Shape& s) {
    List list(s.quantization);
    list.plain("model.embed_tokens.weight", Part::embedding, {s.vocab, s.hidden});
    for (uint32_t i = 0; i < s.layers; ++i) {
        const std::string at = "model.layers." + std::to_string(i);
        list.plain(at + ".input_layernorm.weight", Part::norms, {s.hidden});
        list.plain(at + ".post_attention_layernorm.weight", Part::norms, {s.hidden});
        list.attention(at + ".self_attn", s, s.attention(i), Part::qkv, Part::o_proj);
        if (!s.is_moe[i]) {
            list.feed_forward(at + ".mlp", Part::dense, s.dense_width, s.hidden);
            continue;
        }
        list.plain(at + ".mlp.gate.weight", Part::router, {s.experts, s.hidden},
                   {Dtype::f32, Dtype::bf16});
        list.plain(at + ".mlp.gate.e_score_correction_bias", Part::router, {s.experts},
                   {Dtype::f32, Dtype::bf16});
        for (uint32_t e = 0; e < s.experts; ++e) {
            const std::string expert = at + ".mlp.experts." + std::to_string(e);
            list.expert(expert + ".gate_proj", s.expert_width, s.hidden);
            list.expert(expert + ".up_proj", s.expert_width, s.hidden);
            list.expert(expert + ".down_proj", s.hidden, s.expert_width);
        }
    }
    list.plain("model.norm.weight", Part::norms, {s.hidden});
    list.plain("lm_head.weight", Part::head, {s.vocab, s.hidden});
    return std::move(list.tensors);
}

std::vector<RequiredTensor> mtp_inventory(const Shape& s, uint32_t layers) {
    // The releases keep o_proj of these in bf16 as well, whether ignored_layers says so or not.
    Quantization quantization = s.quantization;
    for (uint32_t i = 0; i < layers; ++i) {
        quantization.kept_in_bf16.insert("model.mtp.layers." + std::to_string(i) +
                                         ".self_attn.o_proj");
    }
    List list(quantization);
    for (uint32_t i = 0; i < layers; ++i) {
        const std::string at = "model.mtp.layers." + std::to_string(i);
        list.plain(at + ".eh_proj.weight", Part::mtp, {s.hidden, 2ull * s.hidden});
        for (const char* norm :
             {"enorm", "hnorm", "input_layernorm", "pre_mlp_layernorm", "final_layernorm"}) {
            list.plain(at + "." + norm + ".weight", Part::mtp, {s.hidden});
        }
        list.attention(at + ".self_attn", s, s.sliding, Part::mtp, Part::mtp);
        list.feed_forward(at + ".mlp", Part::mtp, s.dense_width, s.hidden);
    }
    return std::move(list.tensors);
}

std::vector<RequiredTensor> drafter_inventory(const DrafterShape& d) {
    const Quantization none;
    const AttentionShape& a = d.attention;
    List list(none);
    const auto add = [&](const std::string& name, std::vector<uint64_t> shape) {
        list.plain(name, Part::drafter, std::move(shape));
    };
    add("fc.weight", {d.hidden, d.taps.size() * uint64_t{d.hidden}});
    add("hidden_norm.weight", {d.hidden});
    add("norm.weight", {d.hidden});
    for (uint32_t i = 0; i < d.layers; ++i) {
        const std::string at = "layers." + std::to_string(i);
        add(at + ".input_layernorm.weight", {d.hidden});
        add(at + ".post_attention_layernorm.weight", {d.hidden});
        add(at + ".self_attn.q_proj.weight", {a.q_rows(), d.hidden});
        add(at + ".self_attn.k_proj.weight", {a.k_rows(), d.hidden});
        add(at + ".self_attn.v_proj.weight", {a.v_rows(), d.hidden});
        add(at + ".self_attn.o_proj.weight", {d.hidden, a.o_columns()});
        add(at + ".self_attn.q_norm.weight", {a.head_dim});
        add(at + ".self_attn.k_norm.weight", {a.head_dim});
        if (a.sink) add(at + ".self_attn.attention_sink_bias", {a.heads});
        list.feed_forward(at + ".mlp", Part::drafter, d.width, d.hidden);
    }
    return std::move(list.tensors);
}

bool is_skipped(std::string_view name) {
    return std::ranges::any_of(kSkippedPrefixes,
                               [&](std::string_view prefix) { return name.starts_with(prefix); });
}

}  // namespace tessera
