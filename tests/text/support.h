// What the tests of src/text share: files as strings, vectors, the small generator of the oracles.
#pragma once

#include <cstdint>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "text/python_json.h"
#include "text/tokenizer.h"

namespace tessera {

inline std::string read_text(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    EXPECT_TRUE(file.good()) << path;
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// A vector made by tests/vectors/<name>.py.
inline OrderedJson read_vector(const std::string& name) {
    return OrderedJson::parse(read_text(std::string(TESSERA_VECTORS) + "/" + name));
}

inline const Tokenizer& bundled_tokenizer() {
    static const Tokenizer tokenizer =
        Tokenizer::load(std::string(TESSERA_MODEL) + "/tokenizer.json");
    return tokenizer;
}

inline std::string decode(const Tokenizer& tokenizer, const std::vector<uint32_t>& ids) {
    std::string bytes;
    for (const uint32_t id : ids) bytes += tokenizer.token_bytes(id);
    return bytes;
}

// splitmix64, as in tests/vectors/text_tokenizer.py.
class Draw {
  public:
    explicit Draw(uint64_t seed) : state_(seed) {}

    uint64_t next() {
        state_ += 0x9e3779b97f4a7c15u;
        uint64_t z = state_;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }

    uint64_t below(uint64_t count) { return next() % count; }

  private:
    uint64_t state_;
};

}  // namespace tessera
