#include "text/tokenizer.h"

#include <algorithm>
#include <bit>
#include <functional>

#include "base/mapped_file.h"
#include "text/normalize.h"
#include "text/utf8.h"

namespace tessera {
namespace {

size_t hash_of(std::string_view bytes) {
    return std::hash<std::string_view>()(bytes);
}

// Words seen before in the same text, by hash: their ids are copied from earlier in the output. On
// source text about nine words of ten are; a collision only means that one of the two is merged
// again. Two entries a word keep it in the first cache level for short texts.
class SeenWords {
  public:
    explicit SeenWords(size_t text_bytes)
        : words_(std::bit_ceil(std::clamp<size_t>(text_bytes / 4, 16, 16384))) {}

    struct Word {
        std::string_view text;
        size_t first = 0;  // of its ids in the output
        size_t count = 0;
    };

    Word& at(std::string_view word) { return words_[hash_of(word) & (words_.size() - 1)]; }

  private:
    std::vector<Word> words_;
};

inline constexpr size_t kSeenWordBytesMax = 64;  // longer ones seldom come back

}  // namespace

Tokenizer Tokenizer::load(const std::filesystem::path& path) {
    const MappedFile file(path);
    const std::string_view json(reinterpret_cast<const char*>(file.bytes().data()),
                                file.bytes().size());
    return parse(json, path.string());
}

Tokenizer Tokenizer::parse(std::string_view json, std::string_view source) {
    return Tokenizer(read_tokenizer_file(json, source), source);
}

Tokenizer::Tokenizer(TokenizerFile file, std::string_view source)
    : tokens_(std::move(file.tokens)),
      special_(tokens_.size()),
      by_bytes_(std::bit_ceil(2 * tokens_.size() + 2)),
      bpe_(file.byte_ids, file.merges),
      nfc_(file.nfc),
      ignore_merges_(file.ignore_merges) {
    if (file.pattern) splitter_.emplace(*file.pattern, source);
    std::vector<bool> is_added(tokens_.size());
    for (const AddedToken& token : file.added) {
        added_.insert(token.text, token.id);
        special_[token.id] = token.special;
        is_added[token.id] = true;
    }
    for (uint32_t id = 0; id < vocab_size(); ++id) {
        if (tokens_[id].empty() || is_added[id]) continue;
        size_t at = hash_of(tokens_[id]) & (by_bytes_.size() - 1);
        while (by_bytes_[at] != 0) at = (at + 1) & (by_bytes_.size() - 1);
        by_bytes_[at] = id + 1;
    }
}

std::string_view Tokenizer::token_bytes(uint32_t id) const {
    return id < tokens_.size() ? std::string_view(tokens_[id]) : std::string_view();
}

bool Tokenizer::is_special(uint32_t id) const {
    return id < special_.size() && special_[id];
}

std::optional<uint32_t> Tokenizer::id_of(std::string_view bytes) const {
    if (const auto added = added_.id_of(bytes)) return added;
    size_t at = hash_of(bytes) & (by_bytes_.size() - 1);
    for (; by_bytes_[at] != 0; at = (at + 1) & (by_bytes_.size() - 1)) {
        if (tokens_[by_bytes_[at] - 1] == bytes) return by_bytes_[at] - 1;
    }
    return std::nullopt;
}

std::vector<uint32_t> Tokenizer::encode(std::string_view text, Specials specials) const {
    std::string repaired;
    if (valid_utf8_prefix(text) != text.size()) {
        repaired = repair_utf8(text);
        text = repaired;
    }
    std::vector<uint32_t> ids;
    ids.reserve(text.size() / 4 + 4);
    if (specials == Specials::kAsText) {
        encode_plain(text, ids);
        return ids;
    }
    size_t done = 0;
    while (const auto match = added_.find(text, done)) {
        encode_plain(text.substr(done, match->begin - done), ids);
        ids.push_back(match->id);
        done = match->begin + match->bytes;
    }
    encode_plain(text.substr(done), ids);
    return ids;
}

void Tokenizer::encode_plain(std::string_view text, std::vector<uint32_t>& out) const {
    std::string normalized;
    if (nfc_) text = nfc(text, normalized);
    if (text.empty()) return;
    if (!splitter_) {
        encode_word(text, out);
        return;
    }
    SeenWords seen(text.size());
    splitter_->split(text, [&](std::string_view word) {
        if (word.size() > kSeenWordBytesMax) return encode_word(word, out);
        SeenWords::Word& before = seen.at(word);
        const size_t first = out.size();
        if (before.text == word) {
            out.resize(first + before.count);
            std::copy_n(out.begin() + static_cast<ptrdiff_t>(before.first), before.count,
                        out.begin() + static_cast<ptrdiff_t>(first));
            return;
        }
        encode_word(word, out);
        before = {word, first, out.size() - first};
    });
}

void Tokenizer::encode_word(std::string_view word, std::vector<uint32_t>& out) const {
    if (ignore_merges_) {
        if (const auto whole = id_of(word)) {
            out.push_back(*whole);
            return;
        }
    }
    bpe_.encode(word, out);
}

}  // namespace tessera
