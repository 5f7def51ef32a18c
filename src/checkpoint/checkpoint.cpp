#include "checkpoint/checkpoint.h"

#include <algorithm>
#include <optional>
#include <set>
#include <system_error>

#include "base/check.h"
#include "base/error.h"
#include "checkpoint/excerpt.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kIndexName = "model.safetensors.index.json";
constexpr std::string_view kSingleName = "model.safetensors";
constexpr std::string_view kShardSuffix = ".safetensors";

// ------------------------------------------------------------------ where files may lie

// Control bytes are refused with the rest, so that a name can stand in a message as it is.
bool is_bare_shard_name(std::string_view name) {
    const auto is_bad = [](char c) {
        return c == '/' || c == '\\' || c == '\x7f' || static_cast<unsigned char>(c) < 0x20;
    };
    return name.size() > kShardSuffix.size() && name.ends_with(kShardSuffix) &&
           name.find("..") == name.npos && std::ranges::none_of(name, is_bad);
}

// Component by component: /models/mimo-evil is not inside /models/mimo.
bool is_inside(const fs::path& path, const fs::path& root) {
    return std::ranges::mismatch(root, path).in1 == root.end();
}

// A checkpoint folder and the places that its links may lead to.
class Home {
  public:
    explicit Home(const fs::path& folder) : given_(folder) {
        std::error_code problem;
        folder_ = fs::canonical(folder, problem);
        if (problem) fail("{}: no such checkpoint folder: {}", folder.string(), problem.message());
        if (!fs::is_directory(folder_, problem)) {
            fail("{}: expected a checkpoint folder, found a file", folder.string());
        }
        // A Hugging Face cache keeps models--x/blobs/<hash> and links to it from
        // models--x/snapshots/<commit>/<name>.
        const fs::path blobs = fs::canonical(folder_ / "../../blobs", problem);
        if (!problem) blobs_ = blobs;
    }

    // The file behind `name`, links resolved, or nothing where there is none (a link to nowhere
    // counts as none). Opening what is returned does not follow a link again.
    std::optional<fs::path> find(std::string_view name) const {
        std::error_code problem;
        const fs::path path = given_ / name;
        const fs::path real = fs::canonical(path, problem);
        if (problem == std::errc::no_such_file_or_directory) return std::nullopt;
        if (problem) fail("{}: cannot be resolved: {}", path.string(), problem.message());
        if (!is_inside(real, folder_) && (blobs_.empty() || !is_inside(real, blobs_))) {
            fail("{}: a link that leads out of the folder, to {}; copy the file into the folder",
                 path.string(), real.string());
        }
        return real;
    }

    std::string text(std::string_view name) const { return (given_ / name).string(); }

  private:
    fs::path given_;   // as the user wrote it, for messages
    fs::path folder_;  // canonical
    fs::path blobs_;   // canonical; empty where there is none
};

// ------------------------------------------------------------------ the parts of a checkpoint

Json read_config(const Home& home) {
    const std::optional<fs::path> path = home.find("config.json");
    if (!path) fail("{}: no such file; a checkpoint folder has one", home.text("config.json"));
    Json config =
        parse_json(read_text_file(*path), home.text("config.json"), {.trailing_commas = true});
    if (!config.is_object()) {
        fail("{}: expected an object, found {}", home.text("config.json"), json_excerpt(config));
    }
    return config;
}

// Tensors by the shard that holds them, gathered shard by shard.
class Gathering {
  public:
    Gathering(const Home& home, Checkpoint& checkpoint) : home_(home), checkpoint_(checkpoint) {}

    // False where the folder lacks the shard.
    bool add(const std::string& shard) {
        const std::optional<fs::path> path = home_.find(shard);
        if (!path) return false;
        const MappedFile& file = checkpoint_.shards.emplace_back(*path);
        const std::span<const std::byte> bytes = file.bytes();
        for (auto& [name, info] : parse_safetensors(bytes, bytes.size(), home_.text(shard))) {
            const auto [owner, is_new] = shard_of_.emplace(name, shard);
            if (!is_new) {
                fail("{}: tensor {} is in {} too; expected it in one shard", home_.text(shard),
                     excerpt(name), owner->second);
            }
            const auto span = bytes.subspan(info.begin, info.end - info.begin);
            checkpoint_.tensors.emplace(name, Tensor{info.dtype, info.shape, span});
        }
        return true;
    }

    // Compares what was gathered with what the index promised of the shards that are here.
    void check(const std::map<std::string, std::string>& index,
               const std::set<std::string>& absent) {
        for (const auto& [name, shard] : index) {
            const auto owner = shard_of_.find(name);
            if (owner == shard_of_.end()) {
                if (absent.contains(shard)) continue;
                checkpoint_.missing.push_back(
                    fmt::format("no tensor {} in {}", excerpt(name), shard));
            } else if (owner->second != shard) {
                fail(
                    "{}: tensor {}: expected in {}, found in {}; the index and shards are not of "
                    "one release",
                    home_.text(kIndexName), excerpt(name), shard, owner->second);
            }
        }
    }

  private:
    const Home& home_;
    Checkpoint& checkpoint_;
    std::map<std::string, std::string> shard_of_;
};

void gather_indexed(const Home& home, const fs::path& index_path, Checkpoint& checkpoint) {
    const std::string text = read_text_file(index_path, JsonLimits{}.bytes_max);
    const std::map<std::string, std::string> index = parse_index(text, home.text(kIndexName));
    std::map<std::string, size_t> tensors_of;
    for (const auto& [name, shard] : index) ++tensors_of[shard];
    Gathering gathering(home, checkpoint);
    std::set<std::string> absent;
    for (const auto& [shard, tensors] : tensors_of) {
        if (gathering.add(shard)) continue;
        absent.insert(shard);
        checkpoint.missing.push_back(
            fmt::format("no file {}, which holds {} tensors", shard, tensors));
    }
    gathering.check(index, absent);
}

}  // namespace

std::map<std::string, std::string> parse_index(std::string_view text, std::string_view source) {
    const Json index = parse_json(text, source);
    if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
        fail("{}: expected an object with an object weight_map, found {}", source,
             json_excerpt(index));
    }
    std::map<std::string, std::string> shard_of;
    for (const auto& [name, shard] : index["weight_map"].items()) {
        if (!shard.is_string() || !is_bare_shard_name(shard.get_ref<const std::string&>())) {
            fail("{}: tensor {}: expected the bare name of a {} file in this folder, found {}",
                 source, excerpt(name), kShardSuffix, json_excerpt(shard));
        }
        shard_of.emplace(name, shard.get<std::string>());
    }
    return shard_of;
}

Checkpoint open_checkpoint(const fs::path& folder) {
    const Home home(folder);
    Checkpoint checkpoint;
    checkpoint.folder = folder;
    checkpoint.config = read_config(home);
    if (const std::optional<fs::path> index = home.find(kIndexName)) {
        gather_indexed(home, *index, checkpoint);
    } else if (!Gathering(home, checkpoint).add(std::string(kSingleName))) {
        fail("{}: expected {} or {}, found neither", folder.string(), kIndexName, kSingleName);
    }
    return checkpoint;
}

std::string read_text_file(const fs::path& path, size_t bytes_max) {
    const MappedFile file(path);
    const std::span<const std::byte> bytes = file.bytes();
    if (bytes.size() > bytes_max) {
        fail("{}: {} bytes, at most {} are accepted", path.string(), bytes.size(), bytes_max);
    }
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace tessera
