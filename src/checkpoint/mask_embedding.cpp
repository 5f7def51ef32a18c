#include "checkpoint/mask_embedding.h"

#include <bit>
#include <map>
#include <string>

#include "base/check.h"
#include "base/error.h"
#include "checkpoint/excerpt.h"
#include "checkpoint/little_endian.h"
#include "checkpoint/pickle.h"
#include "checkpoint/zip.h"

namespace tessera {
namespace {

using Kind = PickleValue::Kind;
using Entries = std::map<std::string, std::span<const std::byte>>;

constexpr std::string_view kPickleName = "/data.pkl";

// torch puts everything under one folder, named after the file it was first saved as.
std::string archive_folder(const Entries& entries, std::string_view source) {
    const std::string* found = nullptr;
    for (const auto& [name, bytes] : entries) {
        if (!name.ends_with(kPickleName)) continue;
        if (found != nullptr) {
            fail("{}: two pickles, {} and {}; expected one", source, excerpt(*found),
                 excerpt(name));
        }
        found = &name;
    }
    if (found == nullptr) {
        fail("{}: a zip archive without a data.pkl; expected a file saved by torch.save", source);
    }
    return found->substr(0, found->size() - kPickleName.size());
}

void check_byte_order(const Entries& entries, const std::string& folder, std::string_view source) {
    const auto found = entries.find(folder + "/byteorder");
    if (found == entries.end()) return;  // older torch does not write it
    const std::string_view order(reinterpret_cast<const char*>(found->second.data()),
                                 found->second.size());
    if (order != "little") fail("{}: expected byteorder little, found {}", source, excerpt(order));
}

// Reads the description that a pickle spells: every step names what it expected.
class Reader {
  public:
    Reader(const Entries& entries, std::string folder, std::string_view source)
        : entries_(entries),
          folder_(std::move(folder)),
          source_(source),
          pickle_(read_pickle(entries_.at(folder_ + std::string(kPickleName)), source)) {}

    MaskEmbedding read() const {
        const PickleValue& dict = expect(pickle_.root, Kind::dict, "the pickle");
        const PickleValue *id = nullptr, *embedding = nullptr;
        for (size_t i = 0; i < dict.items.size(); i += 2) {
            const PickleValue& key = expect(dict.items[i], Kind::text, "a key of the dict");
            const PickleValue*& slot = key.text == "mask_token_id" ? id : embedding;
            if (key.text != "mask_token_id" && key.text != "embedding") {
                fail("{}: expected the keys mask_token_id and embedding, found {}", source_,
                     excerpt(key.text));
            }
            if (slot != nullptr) fail("{}: the key {} appears twice", source_, key.text);
            slot = &value(dict.items[i + 1]);
        }
        if (id == nullptr) fail("{}: the key mask_token_id is missing", source_);
        if (embedding == nullptr) fail("{}: the key embedding is missing", source_);
        return {number(*id, "mask_token_id"), tensor(*embedding)};
    }

  private:
    // -------------------------------------------------------------- values

    const PickleValue& value(uint32_t index) const {
        CHECK(index < pickle_.values.size());
        return pickle_.values[index];
    }

    const PickleValue& expect(const PickleValue& found, Kind kind, std::string_view what) const {
        if (found.kind != kind) {
            fail("{}: {}: expected {}, found {}", source_, what, kind_name(kind),
                 kind_name(found.kind));
        }
        return found;
    }

    const PickleValue& expect(uint32_t index, Kind kind, std::string_view what) const {
        return expect(value(index), kind, what);
    }

    int64_t number(const PickleValue& found, std::string_view what) const {
        const int64_t number = expect(found, Kind::integer, what).number;
        if (number < 0) fail("{}: {}: expected 0 or more, found {}", source_, what, number);
        return number;
    }

    const std::vector<uint32_t>& tuple(uint32_t index, size_t count, std::string_view what) const {
        const std::vector<uint32_t>& items = expect(index, Kind::tuple, what).items;
        if (items.size() != count) {
            fail("{}: {}: expected {} values, found {}", source_, what, count, items.size());
        }
        return items;
    }

    // -------------------------------------------------------------- the tensor

    // _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks); offset, size and
    // stride count elements.
    std::vector<bf16> tensor(const PickleValue& found) const {
        const PickleValue& call = expect(found, Kind::call, "embedding");
        if (call.text != "torch._utils _rebuild_tensor_v2") {
            fail("{}: embedding: expected a tensor, found {}", source_, call.text);
        }
        const std::vector<uint32_t>& arguments = tuple(call.items.front(), 6, "embedding");
        const auto offset =
            static_cast<uint64_t>(number(value(arguments[1]), "embedding's offset"));
        const std::vector<uint32_t>& size = tuple(arguments[2], 1, "embedding's size");
        const std::vector<uint32_t>& stride = tuple(arguments[3], 1, "embedding's stride");
        const auto count = static_cast<uint64_t>(number(value(size[0]), "embedding's size"));
        const int64_t step = number(value(stride[0]), "embedding's stride");
        expect(arguments[4], Kind::boolean, "embedding's requires_grad");
        const PickleValue& hooks = expect(arguments[5], Kind::call, "embedding's hooks");
        if (hooks.text != "collections OrderedDict" ||
            !expect(hooks.items.front(), Kind::tuple, "embedding's hooks").items.empty()) {
            fail("{}: embedding's hooks: expected an empty OrderedDict", source_);
        }
        if (count == 0) fail("{}: embedding: expected at least one value, found none", source_);
        if (step != 1)
            fail("{}: embedding: expected stride 1, found {}; save .contiguous()", source_, step);
        return elements(arguments[0], offset, count);
    }

    // Persistent id ('storage', class, key, device, count); the bytes are the entry data/<key>.
    std::vector<bf16> elements(uint32_t index, uint64_t offset, uint64_t count) const {
        const PickleValue& id = expect(index, Kind::persistent, "embedding's storage");
        const std::vector<uint32_t>& parts = tuple(id.items.front(), 5, "embedding's storage");
        const std::string_view tag = expect(parts[0], Kind::text, "embedding's storage").text;
        const std::string_view type = expect(parts[1], Kind::global, "embedding's storage").text;
        const std::string_view key = expect(parts[2], Kind::text, "embedding's storage").text;
        expect(parts[3], Kind::text, "embedding's storage");  // a device; the bytes are the same
        const auto held = static_cast<uint64_t>(number(value(parts[4]), "embedding's storage"));
        const bool is_bf16 = type == "torch BFloat16Storage";
        if (tag != "storage" || (!is_bf16 && type != "torch FloatStorage")) {
            fail("{}: embedding: expected a bf16 or f32 storage, found {} of {}", source_,
                 excerpt(tag), type);
        }
        const std::span<const std::byte> bytes = storage(key);
        const size_t width = is_bf16 ? sizeof(bf16) : sizeof(float);
        if (bytes.size() % width != 0 || bytes.size() / width != held) {
            fail("{}: embedding: a storage of {} values of {} bytes, its entry has {} bytes",
                 source_, held, width, bytes.size());
        }
        if (offset > held || count > held - offset) {
            fail("{}: embedding: values {} to {} + {} of a storage of {}", source_, offset, offset,
                 count, held);
        }
        const std::span<const std::byte> used = bytes.subspan(offset * width, count * width);
        return is_bf16 ? as_bf16(used) : from_float(used);
    }

    std::span<const std::byte> storage(std::string_view key) const {
        const auto found = entries_.find(fmt::format("{}/data/{}", folder_, key));
        if (found == entries_.end()) {
            fail("{}: embedding: the archive has no entry data/{}", source_, excerpt(key));
        }
        return found->second;
    }

    static std::vector<bf16> as_bf16(std::span<const std::byte> bytes) {
        std::vector<bf16> values;
        values.reserve(bytes.size() / 2);
        for (size_t at = 0; at < bytes.size(); at += 2) {
            values.push_back({little_endian<uint16_t>(bytes, at)});
        }
        return values;
    }

    static std::vector<bf16> from_float(std::span<const std::byte> bytes) {
        std::vector<bf16> values;
        values.reserve(bytes.size() / 4);
        for (size_t at = 0; at < bytes.size(); at += 4) {
            values.push_back(to_bf16(std::bit_cast<float>(little_endian<uint32_t>(bytes, at))));
        }
        return values;
    }

    const Entries& entries_;
    std::string folder_;
    std::string_view source_;
    Pickle pickle_;
};

}  // namespace

MaskEmbedding parse_mask_embedding(std::span<const std::byte> file, std::string_view source) {
    const Entries entries = read_zip(file, source);
    const std::string folder = archive_folder(entries, source);
    check_byte_order(entries, folder, source);
    return Reader(entries, folder, source).read();
}

}  // namespace tessera
