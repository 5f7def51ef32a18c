#include "weights/quantize_folder.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <set>
#include <system_error>

#include "base/check.h"
#include "base/error.h"
#include "base/log.h"
#include "base/threads.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/shard_writer.h"
#include "weights/bind.h"
#include "weights/quantize_journal.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kSingle = "model.safetensors";
constexpr const char* kConfig = "config.json";
constexpr std::string_view kWeight = ".weight";

// The routed experts' matrices by the names of their modules.
std::map<std::string, const Matrix*> experts_of(const Weights& weights) {
    std::map<std::string, const Matrix*> found;
    for (size_t i = 0; i < weights.layers.size(); ++i) {
        for (size_t e = 0; e < weights.layers[i].experts.size(); ++e) {
            const FeedForward& expert = weights.layers[i].experts[e];
            const std::string at = fmt::format("model.layers.{}.mlp.experts.{}.", i, e);
            found[at + "gate_proj"] = &expert.gate;
            found[at + "up_proj"] = &expert.up;
            found[at + "down_proj"] = &expert.down;
        }
    }
    return found;
}

std::string module_of(const std::string& tensor) {
    const size_t at = tensor.rfind(".weight");
    return at == tensor.npos ? "" : tensor.substr(0, at);
}

// Linear layers that stay in bf16, as ignored_layers names them.
std::vector<std::string> modules_in_bf16(const Shape& shape) {
    std::vector<std::string> names;
    for (const RequiredTensor& required : target_inventory(shape)) {
        const bool linear = required.part == Part::qkv || required.part == Part::o_proj ||
                            required.part == Part::dense;
        if (linear && required.shape.size() == 2 && required.name.ends_with(kWeight))
            names.push_back(module_of(required.name));
    }
    return names;
}

// Shard by shard, in the order of their bytes: where each tensor of IN lies.
std::map<std::string, std::vector<std::string>> tensors_by_shard(const Checkpoint& checkpoint) {
    std::map<std::string, std::string> shard_of;
    const fs::path index = checkpoint.folder / kIndex;
    if (exists(index)) {
        shard_of = parse_index(read_text_file(index, JsonLimits{}.bytes_max), index.string());
    } else {
        for (const auto& [name, tensor] : checkpoint.tensors) shard_of[name] = kSingle;
    }
    std::map<std::string, std::vector<std::string>> shards;
    for (const auto& [name, tensor] : checkpoint.tensors) {
        const auto found = shard_of.find(name);
        if (found == shard_of.end())
            fail("tensor {} is in no line of {}: it cannot be told where it belongs", name, kIndex);
        shards[found->second].push_back(name);
    }
    for (auto& [shard, names] : shards)
        std::ranges::sort(names, {}, [&](const std::string& name) {
            return checkpoint.tensors.at(name).bytes.data();
        });
    return shards;
}

// ------------------------------------------------------------------ one matrix

// The first element that MXFP4 cannot say, in words.
[[noreturn]] void refuse_row(const std::string& module, const Matrix& matrix, uint32_t row) {
    std::vector<float> values(matrix.columns);
    dequantize_row(matrix, row, values);
    const auto bad = std::ranges::find_if(values, [](float v) { return !std::isfinite(v); });
    CHECK(bad != values.end());
    fail("tensor {}.weight: row {}, column {} is {}: MXFP4 has no such number", module, row,
         bad - values.begin(), std::isnan(*bad) ? "NaN" : "infinite");
}

struct Codes {
    std::vector<std::byte> codes, scales;
};

Codes quantize_matrix(const std::string& module, const Matrix& matrix,
                      const QuantizeRequest& request) {
    const size_t code_bytes = matrix.columns / 2, scale_bytes = matrix.columns / kMxBlock;
    Codes out{std::vector<std::byte>(matrix.rows * code_bytes),
              std::vector<std::byte>(matrix.rows * scale_bytes)};
    std::vector<float> weights;
    if (request.column_weights) weights = request.column_weights(module);
    CHECK(weights.empty() || weights.size() == matrix.columns);
    const bool as_bits =
        matrix.format == Format::bf16 && request.rounding == BlockRounding::nearest;

    // Pieces of some hundred kilobytes: small enough to share out, large enough to be worth a task.
    constexpr size_t kPieceElements = size_t{1} << 17;
    const auto rows_each =
        static_cast<uint32_t>(std::max<size_t>(1, kPieceElements / matrix.columns));
    const uint32_t pieces = (matrix.rows + rows_each - 1) / rows_each;
    parallel_for(pieces, request.threads, [&](size_t piece) {
        std::vector<float> values(as_bits ? 0 : matrix.columns);
        const auto begin = static_cast<uint32_t>(piece) * rows_each;
        for (uint32_t row = begin; row < std::min(begin + rows_each, matrix.rows); ++row) {
            const auto codes = std::span(out.codes).subspan(row * code_bytes, code_bytes);
            const auto scales = std::span(out.scales).subspan(row * scale_bytes, scale_bytes);
            bool finite;
            if (as_bits) {
                const std::byte* const data = matrix.data + row * matrix.row_bytes();
                finite = quantize_nearest({data, matrix.row_bytes()}, codes, scales);
            } else {
                dequantize_row(matrix, row, values);
                finite = quantize_row(values, request.rounding, weights, codes, scales);
            }
            if (!finite) refuse_row(module, matrix, row);
        }
    });
    return out;
}

// ------------------------------------------------------------------ the folder

// OUT as it will be renamed to; Error if it is there already or IN needs no rounding.
fs::path checked_out(const QuantizeRequest& request, const Shape& shape) {
    if (shape.quantization.mxfp4_experts)
        fail("{}: its experts are MXFP4 already: there is nothing to round", request.in.string());
    // Of a name that ends in a slash the last part is empty.
    fs::path out = fs::absolute(request.out).lexically_normal();
    if (!out.has_filename()) out = out.parent_path();
    std::error_code absent;
    if (fs::symlink_status(out, absent).type() != fs::file_type::not_found)
        fail("{}: exists already: give another name, or remove it", request.out.string());
    return out;
}

class Work {
  public:
    explicit Work(const QuantizeRequest& request)
        : request_(request),
          checkpoint_(open_checkpoint(request.in)),
          shape_(parse_shape(checkpoint_.config, (request.in / kConfig).string())) {
        out_ = checked_out(request, shape_);
        partial_ = out_.string() + ".partial";
        weights_ = bind(checkpoint_, shape_);
        check_scales(checkpoint_, shape_, request.threads);
        matrices_ = experts_of(weights_);
        const fs::path file = request.in / kConfig;
        config_ = quantized_config(
            parse_json_in_order(read_text_file(file), file.string(), {.trailing_commas = true}),
            shape_.quantization.fp8 ? std::vector<std::string>{} : modules_in_bf16(shape_));
        new_shape_ = parse_shape(Json(config_), (request.out / kConfig).string());
        plan();
    }

    QuantizeReport run() {
        std::error_code problem;
        fs::create_directories(partial_, problem);
        if (problem) fail("{}: cannot be made: {}", partial_.string(), problem.message());
        QuantizeJournal journal(partial_, job());
        report_.matrices = matrices_.size();
        for (const auto& [shard, entries] : shards_) {
            ++report_.shards;
            for (const Entry& entry : entries) report_.bytes_out += entry.tensor.bytes();
            if (journal.is_finished(shard)) {
                ++report_.shards_kept;
                for (const Entry& entry : entries) advance(entry.bytes_in);
                continue;
            }
            journal.finished(shard, write_shard(shard, entries));
        }
        copy_other_files();
        write_index();
        write_whole(partial_ / kConfig, config_.dump(2) + "\n");
        read_back();
        journal.remove();
        fs::rename(partial_, out_);
        return report_;
    }

  private:
    // What a tensor of the new folder is made of.
    struct Entry {
        ShardTensor tensor;
        std::string module;     // of a matrix that is rounded; empty: copied
        bool is_scale = false;  // of that matrix
        uint64_t bytes_in = 0;  // of IN, gone through once this is written
    };

    void plan() {
        std::set<std::string> required;
        for (const RequiredTensor& one : target_inventory(new_shape_)) required.insert(one.name);
        for (const auto& [shard, names] : tensors_by_shard(checkpoint_)) {
            std::vector<Entry> entries;
            for (const std::string& name : names) {
                const Tensor& tensor = checkpoint_.tensors.at(name);
                report_.bytes_in += tensor.bytes.size();
                const std::string module = module_of(name);
                const auto expert = matrices_.find(module);
                if (expert == matrices_.end()) {
                    entries.push_back(
                        {{name, tensor.dtype, tensor.shape}, "", false, tensor.bytes.size()});
                    continue;
                }
                if (!name.ends_with(kWeight)) {  // an FP8 scale, whose matrix may lie elsewhere
                    scale_bytes_ += tensor.bytes.size();
                    continue;
                }
                CHECK(required.contains(name + "_scale"));
                const Matrix& m = *expert->second;
                entries.push_back({{name, Dtype::u8, {m.rows, m.columns / 2}},
                                   module,
                                   false,
                                   tensor.bytes.size()});
                entries.push_back({{name + "_scale", Dtype::u8, {m.rows, m.columns / kMxBlock}},
                                   module,
                                   true,
                                   0});
            }
            // A shard of nothing but scales that are not needed any more.
            if (!entries.empty()) shards_[shard] = std::move(entries);
        }
    }

    // All that decides what the new folder holds, as far as it can be told without reading it all.
    Json job() const {
        Json tensors = Json::object();
        for (const auto& [name, tensor] : checkpoint_.tensors)
            tensors[name] = {dtype_name(tensor.dtype), tensor.shape};
        const std::string listing = checkpoint_.config.dump() + tensors.dump();
        return {{"job", "quantize"},
                {"in", fs::canonical(request_.in).string()},
                {"listing", std::hash<std::string>()(listing)},
                {"rounding", request_.rounding == BlockRounding::nearest ? "nearest" : "mse"},
                {"details", request_.details}};
    }

    void advance(uint64_t bytes) {
        done_ += bytes;
        if (request_.progress) request_.progress(done_, report_.bytes_in - scale_bytes_);
    }

    void drop(std::span<const std::byte> read) const {
        for (const MappedFile& shard : checkpoint_.shards) shard.drop(read);
    }

    uint64_t write_shard(const std::string& shard, const std::vector<Entry>& entries) {
        std::vector<ShardTensor> tensors;
        for (const Entry& entry : entries) tensors.push_back(entry.tensor);
        ShardWriter writer(partial_ / shard, tensors);
        Codes rounded;
        for (const Entry& entry : entries) {
            if (entry.module.empty()) {
                write_copy(writer, checkpoint_.tensors.at(entry.tensor.name).bytes);
            } else if (entry.is_scale) {
                writer.write(rounded.scales);
            } else {
                rounded = quantize_matrix(entry.module, *matrices_.at(entry.module), request_);
                drop(checkpoint_.tensors.at(entry.tensor.name).bytes);
                writer.write(rounded.codes);
            }
            advance(entry.bytes_in);
        }
        return writer.finish();
    }

    void write_copy(ShardWriter& writer, std::span<const std::byte> bytes) const {
        constexpr size_t kPiece = size_t{16} << 20;
        for (size_t at = 0; at < bytes.size(); at += kPiece) {
            const auto piece = bytes.subspan(at, std::min(kPiece, bytes.size() - at));
            writer.write(piece);
            drop(piece);
        }
    }

    // Everything that is no tensor: tokenizer, templates, the drafter's folder, licences. What is
    // hidden is some tool's own.
    void copy_other_files() const {
        std::set<std::string> ours = {kConfig, kIndex};
        for (const auto& [shard, names] : tensors_by_shard(checkpoint_)) ours.insert(shard);
        for (auto at = fs::recursive_directory_iterator(request_.in);
             at != fs::recursive_directory_iterator(); ++at) {
            if (at->path().filename().string().starts_with('.')) {
                if (at->is_directory()) at.disable_recursion_pending();
                continue;
            }
            const fs::path name = at->path().lexically_relative(request_.in);
            if (ours.contains(name.string()) || !at->is_regular_file()) continue;
            fs::create_directories((partial_ / name).parent_path());
            fs::copy_file(at->path(), partial_ / name, fs::copy_options::overwrite_existing);
        }
    }

    void write_index() const {
        const fs::path file = request_.in / kIndex;
        if (!exists(file)) return;
        const auto old =
            parse_json_in_order(read_text_file(file, JsonLimits{}.bytes_max), file.string());
        nlohmann::ordered_json index = {
            {"metadata", old.value("metadata", nlohmann::ordered_json::object())}};
        index["metadata"]["total_size"] = report_.bytes_out;
        std::map<std::string, std::string> shard_of;
        for (const auto& [shard, entries] : shards_)
            for (const Entry& entry : entries) shard_of[entry.tensor.name] = shard;
        index["weight_map"] = shard_of;
        write_whole(partial_ / kIndex, index.dump(2) + "\n");
    }

    // The folder as a loader sees it: every shard was read back when it was written.
    void read_back() const {
        const Checkpoint written = open_checkpoint(partial_);
        const Shape shape = parse_shape(written.config, (partial_ / kConfig).string());
        check_tensors(written, target_inventory(shape));
        check_scales(written, shape, request_.threads);
    }

    const QuantizeRequest& request_;
    Checkpoint checkpoint_;
    Shape shape_, new_shape_;
    fs::path out_, partial_;
    Weights weights_{};
    std::map<std::string, const Matrix*> matrices_;
    nlohmann::ordered_json config_;
    std::map<std::string, std::vector<Entry>> shards_;
    uint64_t scale_bytes_ = 0, done_ = 0;
    QuantizeReport report_;
};

}  // namespace

nlohmann::ordered_json quantized_config(nlohmann::ordered_json config,
                                        const std::vector<std::string>& modules_kept) {
    auto& quantization = config["quantization_config"];
    if (!quantization.is_object()) {
        quantization = {{"quant_method", "fp8"},
                        {"fmt", "e4m3"},
                        {"activation_scheme", "dynamic"},
                        {"weight_block_size", {kFp8Block, kFp8Block}},
                        {"ignored_layers", modules_kept}};
    }
    // Experts that an FP8 folder kept in bf16.
    if (quantization.contains("ignored_layers") && quantization["ignored_layers"].is_array()) {
        auto& ignored = quantization["ignored_layers"];
        std::erase_if(ignored.get_ref<nlohmann::ordered_json::array_t&>(), [](const auto& name) {
            return name.is_string() && name.template get_ref<const std::string&>().find(
                                           ".mlp.experts.") != std::string::npos;
        });
    }
    quantization["store_dtype"] = "mxfp4";
    quantization["mxfp4_block_size"] = kMxBlock;
    return config;
}

void check_request(const QuantizeRequest& request) {
    const Checkpoint checkpoint = open_checkpoint(request.in);
    checked_out(request, parse_shape(checkpoint.config, (request.in / kConfig).string()));
}

QuantizeReport quantize_folder(const QuantizeRequest& request) {
    return Work(request).run();
}

}  // namespace tessera
