// tessera inspect: what a checkpoint is and whether it is whole, from its headers alone.
#include <map>
#include <memory>
#include <set>

#include <fmt/format.h>

#include "base/error.h"
#include "base/memory.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/mask_embedding.h"
#include "weights/bind.h"

#include "commands.h"

namespace tessera {
namespace {

constexpr int kExitIncomplete = 1;

// What the tensors of one part add up to.
struct Sum {
    std::set<std::string> formats;
    uint64_t tensors = 0;
    uint64_t parameters = 0;  // scales are not parameters; a byte of MXFP4 holds two
    uint64_t bytes = 0;
};

using Table = std::map<Part, Sum>;

bool is_scale(const std::string& name) {
    return name.ends_with(".weight_scale") || name.ends_with(".weight_scale_inv");
}

std::string format_name(Dtype dtype) {
    switch (dtype) {
        case Dtype::u8:
            return "MXFP4";
        case Dtype::e4m3:
            return "FP8";
        case Dtype::bf16:
            return "bf16";
        case Dtype::f32:
            return "f32";
        default:
            return std::string(dtype_name(dtype));
    }
}

// As the inventory asks for; a tensor that is there counts with the dtype it has.
void add(Table& table, const std::vector<RequiredTensor>& inventory, const Checkpoint& checkpoint) {
    for (const RequiredTensor& required : inventory) {
        const auto found = checkpoint.tensors.find(required.name);
        const bool there = found != checkpoint.tensors.end();
        const Dtype dtype = there ? found->second.dtype : required.dtypes.front();
        Sum& sum = table[required.part];
        ++sum.tensors;
        sum.bytes += there ? found->second.bytes.size() : required.bytes();
        if (is_scale(required.name)) continue;
        sum.formats.insert(format_name(dtype));
        sum.parameters += required.elements() * (dtype == Dtype::u8 ? 2 : 1);
    }
}

// Tensors that are there and that this engine passes over.
void add_skipped(Table& table, const Checkpoint& checkpoint) {
    for (const auto& [name, tensor] : checkpoint.tensors) {
        if (!is_skipped(name)) continue;
        Sum& sum = table[Part::mtp];
        ++sum.tensors;
        sum.bytes += tensor.bytes.size();
        if (is_scale(name)) continue;
        uint64_t elements = tensor.bytes.size() / dtype_bytes(tensor.dtype);
        sum.formats.insert(format_name(tensor.dtype));
        sum.parameters += elements * (tensor.dtype == Dtype::u8 ? 2 : 1);
    }
}

// Bytes of weights that a step of one token reads: one row of the embedding, the chosen experts,
// all of the rest of the target.
uint64_t active_bytes(const Shape& s, Part part, uint64_t bytes) {
    switch (part) {
        case Part::embedding:
            return bytes / s.vocab;
        case Part::experts:
            return bytes / s.experts * s.experts_per_token;
        case Part::mtp:
        case Part::drafter:
            return 0;
        default:
            return bytes;
    }
}

std::string count_text(uint64_t count) {
    static constexpr const char* kUnits[] = {"", " k", " M", " B", " T"};
    double value = static_cast<double>(count);
    size_t unit = 0;
    for (; value >= 1000 && unit + 1 < std::size(kUnits); ++unit) value /= 1000;
    return unit == 0 ? fmt::format("{}", count) : fmt::format("{:.2f}{}", value, kUnits[unit]);
}

std::string join(const std::set<std::string>& words) {
    std::string text;
    for (const std::string& word : words) text += (text.empty() ? "" : "+") + word;
    return text;
}

std::string attention_text(const AttentionShape& a, size_t layers) {
    std::string text =
        fmt::format("{} layers, {} heads ({} kv), head {} / {}, {} rotary, theta {:g}", layers,
                    a.heads, a.kv_heads, a.head_dim, a.v_head_dim, a.rotary_dims, a.rope_theta);
    if (a.window > 0) text += fmt::format(", window {}", a.window);
    return a.sink ? text + ", sinks" : text;
}

void print_shape(const Shape& s) {
    const auto sliding = static_cast<size_t>(std::ranges::count(s.is_sliding, true));
    const auto moe = static_cast<size_t>(std::ranges::count(s.is_moe, true));
    fmt::print("model      {}, {} layers, hidden {}, vocabulary {}, context {} tokens\n",
               s.model_type, s.layers, s.hidden, s.vocab, s.context_max);
    fmt::print("attention  full: {}\n", attention_text(s.full, s.layers - sliding));
    fmt::print("           sliding: {}\n", attention_text(s.sliding, sliding));
    fmt::print("           values x {:g}, {}\n", s.value_scale,
               s.fused_qkv ? fmt::format("fused qkv in {} chunks", s.qkv_chunks())
                           : "separate q, k and v");
    fmt::print("experts    {} layers of {} experts of width {}, {} a token; {} dense of width {}\n",
               moe, s.experts, s.expert_width, s.experts_per_token, s.layers - moe, s.dense_width);
}

void print_table(const Table& table, const Shape& shape) {
    fmt::print("\n{:<15}{:<12}{:>9}{:>14}{:>12}{:>15}\n", "part", "format", "tensors", "parameters",
               "bytes", "a token reads");
    Sum total;
    uint64_t total_active = 0;
    for (const auto& [part, sum] : table) {
        const uint64_t active = active_bytes(shape, part, sum.bytes);
        fmt::print("{:<15}{:<12}{:>9}{:>14}{:>12}{:>15}\n", part_name(part), join(sum.formats),
                   sum.tensors, count_text(sum.parameters), bytes_text(sum.bytes),
                   active > 0 ? bytes_text(active) : "-");
        total.tensors += sum.tensors;
        total.parameters += sum.parameters;
        total.bytes += sum.bytes;
        total_active += active;
    }
    fmt::print("{:<15}{:<12}{:>9}{:>14}{:>12}{:>15}\n\n", "total", "", total.tensors,
               count_text(total.parameters), bytes_text(total.bytes), bytes_text(total_active));
}

// The drafter beside the target, if there is one: adds its tensors, says what it is, throws Error
// if it is not whole.
void inspect_drafter(const std::filesystem::path& folder, const Shape& shape, Table& table) {
    if (!exists(folder / "config.json")) return;
    const Checkpoint checkpoint = open_checkpoint(folder);
    const DrafterShape d =
        parse_drafter_shape(checkpoint.config, shape, (folder / "config.json").string());
    const std::vector<RequiredTensor> inventory = drafter_inventory(d);
    add(table, inventory, checkpoint);
    std::string taps;
    for (const uint32_t tap : d.taps) taps += (taps.empty() ? "" : " ") + std::to_string(tap);
    fmt::print("drafter    DFlash, {} layers, blocks of {}, taps after layers {}\n", d.layers,
               d.block, taps);
    check_tensors(checkpoint, inventory);
    const std::filesystem::path mask_file = folder / "mask_embedding.pt";
    const MaskEmbedding mask =
        parse_mask_embedding(MappedFile(mask_file).bytes(), mask_file.string());
    if (mask.embedding.size() != shape.hidden || mask.mask_token_id != d.mask_token) {
        fail("{}: token {} with {} values, expected token {} with {}", mask_file.string(),
             mask.mask_token_id, mask.embedding.size(), d.mask_token, shape.hidden);
    }
}

// 0 if the folder can be loaded, else 1 with the reasons printed.
int inspect(const std::filesystem::path& folder) {
    const Checkpoint checkpoint = open_checkpoint(folder);
    const Shape shape = parse_shape(checkpoint.config, (folder / "config.json").string());
    std::vector<std::string> wrong = checkpoint.missing;
    const auto expect = [&](const auto& check) {
        try {
            check();
        } catch (const Error& error) {
            wrong.push_back(error.what());
        }
    };
    const std::vector<RequiredTensor> inventory = target_inventory(shape);
    Table table;
    print_shape(shape);
    add(table, inventory, checkpoint);
    add_skipped(table, checkpoint);
    expect([&] { inspect_drafter(folder / "dflash", shape, table); });
    if (checkpoint.complete()) expect([&] { check_tensors(checkpoint, inventory); });
    if (!exists(folder / "tokenizer.json")) wrong.push_back("tokenizer.json is missing");
    print_table(table, shape);
    if (wrong.empty()) {
        fmt::print("complete: {} tensors in {} files\n", checkpoint.tensors.size(),
                   checkpoint.shards.size());
        return 0;
    }
    constexpr size_t kShownMax = 12;
    fmt::print("NOT complete:\n");
    for (size_t i = 0; i < std::min(wrong.size(), kShownMax); ++i) fmt::print("  {}\n", wrong[i]);
    if (wrong.size() > kShownMax) fmt::print("  and {} more\n", wrong.size() - kShownMax);
    return kExitIncomplete;
}

constexpr const char* kExamples = R"(Reads headers only, so it is quick on the largest checkpoint.
Examples:
  tessera inspect                                the bundled model
  tessera inspect ~/models/MiMo-V2.5-Pro-FP4     a folder that may still be downloading
Exit code: 0 if the folder is complete, 1 if not, 2 for an error.
)";

}  // namespace

void add_inspect(CLI::App& program) {
    auto folder = std::make_shared<std::string>();
    CLI::App& command =
        *program.add_subcommand("inspect", "Say what a checkpoint is, and whether it is whole");
    command.footer(kExamples);
    command.add_option("folder", *folder, "Folder of a checkpoint (default: the bundled model)")
        ->type_name("FOLDER");
    command.callback([folder] {
        const int code =
            inspect(folder->empty() ? bundled_model() : std::filesystem::path(*folder));
        if (code != 0) throw CLI::RuntimeError(code);
    });
}

}  // namespace tessera
