#include "checkpoint/safetensors.h"

#include <algorithm>
#include <array>

#include "base/check.h"
#include "base/error.h"
#include "base/json.h"
#include "checkpoint/excerpt.h"
#include "checkpoint/little_endian.h"

namespace tessera {
namespace {

struct DtypeFacts {
    Dtype dtype;
    std::string_view name;
    uint32_t bytes;
};

constexpr std::array kDtypes = {
    DtypeFacts{Dtype::f32, "F32", 4},   DtypeFacts{Dtype::f16, "F16", 2},
    DtypeFacts{Dtype::bf16, "BF16", 2}, DtypeFacts{Dtype::e4m3, "F8_E4M3", 1},
    DtypeFacts{Dtype::u8, "U8", 1},     DtypeFacts{Dtype::i32, "I32", 4},
    DtypeFacts{Dtype::i64, "I64", 8},
};

constexpr bool in_enum_order() {
    for (size_t i = 0; i < kDtypes.size(); ++i) {
        if (kDtypes[i].dtype != static_cast<Dtype>(i)) return false;
    }
    return true;
}
static_assert(in_enum_order());

const DtypeFacts& facts(Dtype dtype) {
    CHECK(static_cast<size_t>(dtype) < kDtypes.size());
    return kDtypes[static_cast<size_t>(dtype)];
}

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kHeaderBytesMax = 100'000'000;
constexpr size_t kRankMax = 8;
constexpr size_t kDepthMax = 3;  // header, tensor, shape

// ------------------------------------------------------------------ the header's bytes

std::string_view header_text(std::span<const std::byte> head, uint64_t file_bytes,
                             std::string_view source) {
    if (file_bytes < kLengthBytes) {
        fail(
            "{}: expected at least {} bytes, found {}: not a safetensors file, or cut off; fetch "
            "it again",
            source, kLengthBytes, file_bytes);
    }
    CHECK(head.size() >= kLengthBytes);
    CHECK(head.size() <= file_bytes);
    const uint64_t length = little_endian<uint64_t>(head, 0);
    if (length > kHeaderBytesMax) {
        fail(
            "{}: the header says it is {} bytes long, at most {} are accepted; is this a "
            "safetensors file?",
            source, length, kHeaderBytesMax);
    }
    if (length > file_bytes - kLengthBytes) {
        fail(
            "{}: the header says it is {} bytes long, the file has {} after its length; fetch it "
            "again",
            source, length, file_bytes - kLengthBytes);
    }
    CHECK(head.size() - kLengthBytes >= length);
    const std::string_view text(reinterpret_cast<const char*>(head.data()) + kLengthBytes, length);
    if (!text.starts_with('{')) {
        fail("{}: expected a header that begins with '{{', found {}", source,
             text.empty() ? "an empty one" : excerpt(text.substr(0, 1)));
    }
    return text;
}

// ------------------------------------------------------------------ one tensor's entry

// `where` opens every message: the file and the tensor.
uint64_t read_number(const Json& value, std::string_view field, std::string_view where) {
    // nlohmann would turn -1, 1.5 and true into some uint64_t without a word.
    if (!value.is_number_unsigned()) {
        fail("{}: {}: expected an integer from 0 up to 2^64 - 1, found {}", where, field,
             json_excerpt(value));
    }
    return value.get<uint64_t>();
}

Dtype read_dtype(const Json& value, std::string_view where) {
    if (value.is_string()) {
        for (const DtypeFacts& known : kDtypes) {
            if (value.get_ref<const std::string&>() == known.name) return known.dtype;
        }
    }
    std::string names;
    for (const DtypeFacts& known : kDtypes)
        names.append(names.empty() ? "" : ", ").append(known.name);
    fail("{}: expected a dtype of {}, found {}", where, names, json_excerpt(value));
}

std::vector<uint64_t> read_shape(const Json& value, std::string_view where) {
    if (!value.is_array())
        fail("{}: expected shape to be a list, found {}", where, json_excerpt(value));
    if (value.size() > kRankMax) {
        fail("{}: expected a shape of at most {} extents, found {}", where, kRankMax, value.size());
    }
    std::vector<uint64_t> shape;
    for (const Json& extent : value) shape.push_back(read_number(extent, "shape", where));
    return shape;
}

// product(shape) * dtype bytes, or a refusal where that does not fit 64 bits. A zero extent makes
// the product zero whatever the others are, yet the others alone must not overflow either: readers
// that multiply in another order would disagree.
uint64_t tensor_bytes(Dtype dtype, const std::vector<uint64_t>& shape, std::string_view where) {
    uint64_t bytes = dtype_bytes(dtype);
    for (const uint64_t extent : shape) {
        if (extent == 0) continue;
        if (__builtin_mul_overflow(bytes, extent, &bytes)) {
            fail("{}: shape {} of {} needs more than 2^64 bytes", where, json_excerpt(Json(shape)),
                 dtype_name(dtype));
        }
    }
    return std::ranges::find(shape, uint64_t{0}) == shape.end() ? bytes : 0;
}

// Offsets are relative to `data_begin`, the end of the header.
TensorInfo read_tensor(const Json& entry, uint64_t data_begin, uint64_t file_bytes,
                       std::string_view where) {
    if (!entry.is_object() || entry.size() != 3 || !entry.contains("dtype") ||
        !entry.contains("shape") || !entry.contains("data_offsets")) {
        fail("{}: expected exactly dtype, shape and data_offsets, found {}", where,
             json_excerpt(entry));
    }
    TensorInfo tensor{};
    tensor.dtype = read_dtype(entry["dtype"], where);
    tensor.shape = read_shape(entry["shape"], where);
    const Json& offsets = entry["data_offsets"];
    if (!offsets.is_array() || offsets.size() != 2) {
        fail("{}: expected data_offsets to be [begin, end], found {}", where,
             json_excerpt(offsets));
    }
    const uint64_t begin = read_number(offsets[0], "data_offsets", where);
    const uint64_t end = read_number(offsets[1], "data_offsets", where);
    const uint64_t data_bytes = file_bytes - data_begin;
    if (begin > end || end > data_bytes) {
        fail(
            "{}: data_offsets [{}, {}] do not lie in the file's {} bytes of data; cut off? fetch "
            "it again",
            where, begin, end, data_bytes);
    }
    const uint64_t expected = tensor_bytes(tensor.dtype, tensor.shape, where);
    if (end - begin != expected) {
        fail("{}: {} {} is {} bytes, data_offsets [{}, {}] hold {}", where,
             dtype_name(tensor.dtype), json_excerpt(Json(tensor.shape)), expected, begin, end,
             end - begin);
    }
    tensor.begin = data_begin + begin;
    tensor.end = data_begin + end;
    return tensor;
}

void check_metadata(const Json& metadata, std::string_view source) {
    const auto is_string = [](const Json& value) { return value.is_string(); };
    if (!metadata.is_object() || !std::ranges::all_of(metadata, is_string)) {
        fail("{}: expected __metadata__ to be an object of strings, found {}", source,
             json_excerpt(metadata));
    }
}

// ------------------------------------------------------------------ all tensors together

// The format wants the data covered once, without holes: bytes that no tensor owns are where a
// second file could hide.
void check_cover(const std::map<std::string, TensorInfo>& tensors, uint64_t data_begin,
                 uint64_t file_bytes, std::string_view source) {
    using Entry = std::pair<const std::string, TensorInfo>;
    std::vector<const Entry*> entries;
    for (const Entry& entry : tensors) entries.push_back(&entry);
    std::ranges::sort(entries, {}, [](const Entry* entry) {
        return std::pair(entry->second.begin, entry->second.end);
    });
    uint64_t covered = data_begin;
    const std::string* previous = nullptr;
    for (const Entry* entry : entries) {
        const auto& [name, tensor] = *entry;
        if (tensor.begin < covered) {
            CHECK(previous != nullptr);
            fail("{}: tensor {} begins at byte {} of the file, inside tensor {}, which ends at {}",
                 source, excerpt(name), tensor.begin, excerpt(*previous), covered);
        }
        if (tensor.begin > covered) {
            fail(
                "{}: tensor {} begins at byte {} of the file, expected {}: no tensor owns the "
                "bytes between",
                source, excerpt(name), tensor.begin, covered);
        }
        covered = tensor.end;
        previous = &name;
    }
    if (covered != file_bytes) {
        fail("{}: the tensors end at byte {}, the file at {}: no tensor owns the bytes between",
             source, covered, file_bytes);
    }
}

}  // namespace

uint32_t dtype_bytes(Dtype dtype) {
    return facts(dtype).bytes;
}

std::string_view dtype_name(Dtype dtype) {
    return facts(dtype).name;
}

std::map<std::string, TensorInfo> parse_safetensors(std::span<const std::byte> head,
                                                    uint64_t file_bytes, std::string_view source) {
    const std::string_view text = header_text(head, file_bytes, source);
    const uint64_t data_begin = kLengthBytes + text.size();
    const Json header =
        parse_json(text, source, {.bytes_max = kHeaderBytesMax, .depth_max = kDepthMax});
    CHECK(header.is_object());
    std::map<std::string, TensorInfo> tensors;
    for (const auto& [name, entry] : header.items()) {
        if (name == "__metadata__") {
            check_metadata(entry, source);
            continue;
        }
        const std::string where = fmt::format("{}: tensor {}", source, excerpt(name));
        tensors.emplace(name, read_tensor(entry, data_begin, file_bytes, where));
    }
    check_cover(tensors, data_begin, file_bytes, source);
    return tensors;
}

}  // namespace tessera
