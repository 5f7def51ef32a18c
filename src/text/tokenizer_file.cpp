#include "text/tokenizer_file.h"

#include <algorithm>
#include <initializer_list>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "text/added.h"

namespace tessera {
namespace {

// The pattern that a ByteLevel pre-tokenizer with use_regex stands for (GPT-2).
inline constexpr std::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Ids at or above this many times the number of tokens (plus the slack) are refused: the tables are
// indexed by id. Published files leave gaps of a few hundred.
inline constexpr uint64_t kIdsPerToken = 4, kIdSlack = 4096;

const Json kNull = nullptr;

const Json& get(const Json& object, const char* key) {
    if (!object.is_object()) return kNull;
    const auto found = object.find(key);
    return found == object.end() ? kNull : *found;
}

// JSON as one short printable line for a message.
std::string shown(const Json& value) {
    constexpr size_t kShownBytes = 80;
    std::string text = value.is_structured() && value.size() > 16
                           ? fmt::format("{} of {}", value.type_name(), value.size())
                           : value.dump(-1, ' ', true);
    if (text.size() > kShownBytes) text = text.substr(0, kShownBytes) + "...";
    return text;
}

class Reader {
  public:
    Reader(const Json& root, std::string_view source) : root_(root), source_(source) {}

    TokenizerFile read();

  private:
    void check_format();
    void read_normalizer();
    void read_pre_tokenizer();
    void read_byte_level(const Json& at, const std::string& where);
    void read_split(const Json& at, const std::string& where);
    void size_tables();
    void read_vocab();
    void read_byte_ids();
    void read_merges();
    uint32_t id_of_symbol(const std::string& symbol, size_t rank) const;
    void read_added();
    void read_added_token(const Json& at, const std::string& where);

    // `object[key]` must be one of `allowed`; a missing key reads as null.
    void expect(const Json& object, const std::string& where, const char* key,
                std::initializer_list<Json> allowed) const {
        const Json& found = get(object, key);
        std::string wanted;
        for (const Json& value : allowed) {
            if (found == value) return;
            wanted += (wanted.empty() ? "" : " or ") + value.dump();
        }
        fail("{}: {}{} is {}, expected {}", source_, where, key, shown(found), wanted);
    }

    void know_keys(const Json& object, const std::string& where,
                   std::initializer_list<std::string_view> known) const {
        if (!object.is_object()) {
            fail("{}: {} is {}, expected an object", source_, where, shown(object));
        }
        for (const auto& [key, value] : object.items()) {
            if (std::find(known.begin(), known.end(), key) != known.end()) continue;
            fail("{}: {} has the key {} = {}, which is not supported", source_, where,
                 shown(Json(key)), shown(value));
        }
    }

    uint32_t read_id(const Json& value, const std::string& where) const {
        if (!value.is_number_unsigned() || value.get<uint64_t>() >= file_.tokens.size()) {
            fail("{}: {} is {}, expected an id below {}", source_, where, shown(value),
                 file_.tokens.size());
        }
        return value.get<uint32_t>();
    }

    const Json& root_;
    std::string_view source_;
    TokenizerFile file_;
    std::unordered_map<std::string_view, uint32_t> symbols_;  // vocab keys, as the file spells them
};

// The byte that each character of the byte-level alphabet stands for. Printable bytes stand for
// themselves; the others, in order, are the characters from U+0100 on.
const std::unordered_map<uint32_t, uint8_t>& byte_alphabet() {
    static const std::unordered_map<uint32_t, uint8_t> alphabet = [] {
        std::unordered_map<uint32_t, uint8_t> bytes;
        uint32_t next = 0x100;
        for (uint32_t byte = 0; byte < 256; ++byte) {
            const bool printable =
                (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
            bytes[printable ? byte : next++] = static_cast<uint8_t>(byte);
        }
        return bytes;
    }();
    return alphabet;
}

// The bytes that `symbol` stands for, or nothing if it has a character outside the alphabet. The
// alphabet ends at U+0143, so one or two bytes of UTF-8 spell any of it.
std::optional<std::string> bytes_of_symbol(std::string_view symbol) {
    std::string bytes;
    for (size_t i = 0; i < symbol.size(); ++i) {
        uint32_t character = static_cast<uint8_t>(symbol[i]);
        if (character >= 0xe0) return std::nullopt;
        if (character >= 0x80) {
            character = (character & 0x1fu) << 6 | (static_cast<uint8_t>(symbol[++i]) & 0x3fu);
        }
        const auto found = byte_alphabet().find(character);
        if (found == byte_alphabet().end()) return std::nullopt;
        bytes += static_cast<char>(found->second);
    }
    return bytes;
}

void Reader::check_format() {
    know_keys(root_, "the file",
              {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
               "post_processor", "decoder", "model"});
    expect(root_, "", "version", {"1.0", nullptr});
    expect(root_, "", "truncation", {nullptr});
    expect(root_, "", "padding", {nullptr});
    if (!get(root_, "post_processor").is_null()) {
        expect(root_["post_processor"], "post_processor.", "type", {"ByteLevel"});
    }
    expect(get(root_, "decoder"), "decoder.", "type", {"ByteLevel"});
    const Json& model = get(root_, "model");
    know_keys(model, "model",
              {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
               "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"});
    expect(model, "model.", "type", {"BPE"});
    expect(model, "model.", "dropout", {nullptr});
    expect(model, "model.", "unk_token", {nullptr});
    expect(model, "model.", "continuing_subword_prefix", {nullptr, ""});
    expect(model, "model.", "end_of_word_suffix", {nullptr, ""});
    expect(model, "model.", "fuse_unk", {false, nullptr});
    expect(model, "model.", "byte_fallback", {false, nullptr});
    expect(model, "model.", "ignore_merges", {false, true, nullptr});
    file_.ignore_merges = get(model, "ignore_merges") == Json(true);
}

void Reader::read_normalizer() {
    const Json& normalizer = get(root_, "normalizer");
    if (normalizer.is_null()) return;
    know_keys(normalizer, "normalizer", {"type"});
    expect(normalizer, "normalizer.", "type", {"NFC"});
    file_.nfc = true;
}

void Reader::read_byte_level(const Json& at, const std::string& where) {
    know_keys(at, where, {"type", "add_prefix_space", "trim_offsets", "use_regex"});
    expect(at, where + ".", "type", {"ByteLevel"});
    expect(at, where + ".", "add_prefix_space", {false});
}

void Reader::read_split(const Json& at, const std::string& where) {
    know_keys(at, where, {"type", "pattern", "behavior", "invert"});
    expect(at, where + ".", "type", {"Split"});
    expect(at, where + ".", "behavior", {"Isolated"});
    expect(at, where + ".", "invert", {false, nullptr});
    const Json& pattern = get(at, "pattern");
    know_keys(pattern, where + ".pattern", {"Regex"});
    if (!get(pattern, "Regex").is_string()) {
        fail("{}: {}.pattern is {}, expected {{\"Regex\": a string}}", source_, where,
             shown(pattern));
    }
    file_.pattern = pattern["Regex"].get<std::string>();
}

void Reader::read_pre_tokenizer() {
    const Json& at = get(root_, "pre_tokenizer");
    expect(at, "pre_tokenizer.", "type", {"Sequence", "ByteLevel"});
    if (at["type"] == "ByteLevel") {
        read_byte_level(at, "pre_tokenizer");
        expect(at, "pre_tokenizer.", "use_regex", {true, false, nullptr});
        if (get(at, "use_regex") != Json(false)) file_.pattern = kByteLevelPattern;
        return;
    }
    know_keys(at, "pre_tokenizer", {"type", "pretokenizers"});
    const Json& steps = get(at, "pretokenizers");
    if (!steps.is_array() || steps.size() != 2) {
        fail("{}: pre_tokenizer.pretokenizers is {}, expected [Split, ByteLevel]", source_,
             shown(steps));
    }
    read_split(steps[0], "pre_tokenizer.pretokenizers[0]");
    read_byte_level(steps[1], "pre_tokenizer.pretokenizers[1]");
    expect(steps[1], "pre_tokenizer.pretokenizers[1].", "use_regex", {false});
}

// Room for every id that the file names, if that is no more than a few for each token.
void Reader::size_tables() {
    const Json& vocab = get(get(root_, "model"), "vocab");
    if (!vocab.is_object()) {
        fail("{}: model.vocab is {}, expected an object", source_, shown(vocab));
    }
    const Json& added = get(root_, "added_tokens");
    const uint64_t count = vocab.size() + (added.is_array() ? added.size() : 0);
    uint64_t ids = 0;
    const auto see = [&](const Json& id, const std::string& name) {
        const uint64_t ids_max = count * kIdsPerToken + kIdSlack;
        if (!id.is_number_unsigned() || id.get<uint64_t>() >= ids_max) {
            fail("{}: the id of {} is {}, expected an integer below {} ({} tokens)", source_, name,
                 shown(id), ids_max, count);
        }
        ids = std::max(ids, id.get<uint64_t>() + 1);
    };
    for (const auto& [symbol, id] : vocab.items()) see(id, shown(Json(symbol)));
    if (added.is_array()) {
        for (const Json& token : added) see(get(token, "id"), shown(get(token, "content")));
    }
    file_.tokens.resize(ids);
}

void Reader::read_vocab() {
    std::unordered_set<std::string_view> added;  // may be in the vocabulary too, spelt plainly
    if (get(root_, "added_tokens").is_array()) {
        for (const Json& token : root_["added_tokens"]) {
            const Json& content = get(token, "content");
            if (content.is_string()) added.insert(content.get_ref<const std::string&>());
        }
    }
    const Json& vocab = root_["model"]["vocab"];
    std::vector<bool> taken(file_.tokens.size());
    for (const auto& entry : vocab.items()) {
        const std::string& symbol = entry.key();
        const uint32_t id = read_id(entry.value(), "the id of " + shown(Json(symbol)));
        if (taken[id]) fail("{}: model.vocab gives the id {} to two tokens", source_, id);
        taken[id] = true;
        std::optional<std::string> bytes = bytes_of_symbol(symbol);
        if (added.contains(symbol)) {
            if (bytes && *bytes != symbol) {
                fail(
                    "{}: model.vocab has {}, which is an added token too, but there it would stand "
                    "for other bytes",
                    source_, shown(Json(symbol)));
            }
            bytes = symbol;
        }
        if (!bytes || bytes->empty()) {
            fail("{}: model.vocab has the token {}, expected characters of the byte-level alphabet",
                 source_, shown(Json(symbol)));
        }
        file_.tokens[id] = std::move(*bytes);
    }
    symbols_.reserve(vocab.size());
    for (auto entry = vocab.begin(); entry != vocab.end(); ++entry) {
        symbols_.emplace(entry.key(), entry.value().get<uint32_t>());
    }
}

void Reader::read_byte_ids() {
    for (const auto& [character, byte] : byte_alphabet()) {
        std::string symbol;
        if (character < 0x80) {
            symbol = static_cast<char>(character);
        } else {
            symbol = {static_cast<char>(0xc0 | character >> 6),
                      static_cast<char>(0x80 | (character & 0x3f))};
        }
        const auto found = symbols_.find(symbol);
        if (found == symbols_.end()) {
            fail("{}: model.vocab lacks {}, the token of byte {:#04x}; expected all 256", source_,
                 shown(Json(symbol)), byte);
        }
        file_.byte_ids[byte] = found->second;
    }
}

uint32_t Reader::id_of_symbol(const std::string& symbol, size_t rank) const {
    const auto found = symbols_.find(symbol);
    if (found == symbols_.end()) {
        fail("{}: model.merges[{}] needs the token {}, which model.vocab lacks", source_, rank,
             shown(Json(symbol)));
    }
    return found->second;
}

void Reader::read_merges() {
    const Json& merges = get(root_["model"], "merges");
    if (!merges.is_array()) {
        fail("{}: model.merges is {}, expected an array", source_, shown(merges));
    }
    std::unordered_set<uint64_t> seen;
    file_.merges.reserve(merges.size());
    for (size_t rank = 0; rank < merges.size(); ++rank) {
        const Json& merge = merges[rank];
        std::string left, right;
        if (merge.is_string()) {
            const std::string& both = merge.get_ref<const std::string&>();
            const size_t space = both.find(' ');
            left = both.substr(0, space);
            if (space != std::string::npos) right = both.substr(space + 1);
        } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
                   merge[1].is_string()) {
            left = merge[0];
            right = merge[1];
        }
        if (left.empty() || right.empty() || right.find(' ') != std::string::npos) {
            fail("{}: model.merges[{}] is {}, expected [\"a\", \"b\"] or \"a b\"", source_, rank,
                 shown(merge));
        }
        const Merge ids = {id_of_symbol(left, rank), id_of_symbol(right, rank),
                           id_of_symbol(left + right, rank)};
        if (!seen.insert(uint64_t{ids.left} << 32 | ids.right).second) {
            fail("{}: model.merges[{}] = {} stands there twice", source_, rank, shown(merge));
        }
        file_.merges.push_back(ids);
    }
}

void Reader::read_added_token(const Json& at, const std::string& where) {
    know_keys(at, where,
              {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
    expect(at, where + ".", "single_word", {false, nullptr});
    expect(at, where + ".", "lstrip", {false, nullptr});
    expect(at, where + ".", "rstrip", {false, nullptr});
    expect(at, where + ".", "normalized", {false});
    expect(at, where + ".", "special", {true, false});
    const Json& content = get(at, "content");
    const size_t bytes = content.is_string() ? content.get_ref<const std::string&>().size() : 0;
    if (bytes == 0 || bytes > kAddedTokenBytesMax) {
        fail("{}: {}.content is {}, expected 1 to {} bytes of text", source_, where, shown(content),
             kAddedTokenBytesMax);
    }
    AddedToken token{content, read_id(get(at, "id"), where + ".id"), at["special"] == Json(true)};
    const auto in_vocab = symbols_.find(token.text);
    if (in_vocab != symbols_.end() && in_vocab->second != token.id) {
        fail("{}: {}.id is {}, expected {} as in model.vocab", source_, where, token.id,
             in_vocab->second);
    }
    if (in_vocab == symbols_.end() && !file_.tokens[token.id].empty()) {
        fail("{}: {}.id is {}, which another token has already", source_, where, token.id);
    }
    file_.tokens[token.id] = token.text;
    file_.added.push_back(std::move(token));
}

void Reader::read_added() {
    const Json& added = get(root_, "added_tokens");
    if (added.is_null()) return;
    if (!added.is_array()) {
        fail("{}: added_tokens is {}, expected an array", source_, shown(added));
    }
    std::unordered_set<std::string> seen;
    for (size_t i = 0; i < added.size(); ++i) {
        const std::string where = fmt::format("added_tokens[{}]", i);
        read_added_token(added[i], where);
        if (!seen.insert(file_.added.back().text).second) {
            fail("{}: {}.content is {}, which stands there twice", source_, where,
                 shown(added[i]["content"]));
        }
    }
}

TokenizerFile Reader::read() {
    check_format();
    read_normalizer();
    read_pre_tokenizer();
    size_tables();
    read_vocab();
    read_byte_ids();
    read_merges();
    read_added();
    return std::move(file_);
}

}  // namespace

TokenizerFile read_tokenizer_file(std::string_view json, std::string_view source) {
    const Json root = parse_json(json, source);
    return Reader(root, source).read();
}

}  // namespace tessera
