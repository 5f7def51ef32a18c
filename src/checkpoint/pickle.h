// A pickle is a program for a stack machine. This one builds a description of what the program
// spells and runs nothing: a call is recorded by the name of what would be called, and only the
// names that a saved tensor needs may appear at all. Knows no torch beyond those names.
// Source: CPython, Lib/pickletools.py, protocol 2.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace tessera {

struct PickleValue {
    enum class Kind : uint8_t { integer, boolean, text, tuple, dict, global, persistent, call };

    Kind kind;
    int64_t number = 0;  // of an integer or boolean
    std::string_view text =
        {};  // a text; the name of a global, or of what a call calls: "module name"
    std::vector<uint32_t> items;  // of a tuple; of a dict key, value, key, …; a call's one tuple of
                                  // arguments; a persistent id's one value
};

std::string_view kind_name(PickleValue::Kind kind);

// Values refer to each other by index, so that a tuple used a thousand times is there once.
struct Pickle {
    std::vector<PickleValue> values;
    uint32_t root = 0;
};

// At most 64 KiB: a saved tensor takes 200 bytes. Texts are views of `bytes`. Throws Error naming
// `source` and the opcode, name or limit.
Pickle read_pickle(std::span<const std::byte> bytes, std::string_view source);

}  // namespace tessera
