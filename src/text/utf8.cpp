#include "text/utf8.h"

#include <cstring>

namespace tessera {

bool Utf8Repair::starts_character(uint8_t byte) {
    low_ = 0x80;
    high_ = 0xbf;
    if (byte >= 0xc2 && byte <= 0xdf) {
        missing_ = 1;
    } else if (byte >= 0xe0 && byte <= 0xef) {
        missing_ = 2;
        if (byte == 0xe0) low_ = 0xa0;   // shorter forms exist
        if (byte == 0xed) high_ = 0x9f;  // surrogates
    } else if (byte >= 0xf0 && byte <= 0xf4) {
        missing_ = 3;
        if (byte == 0xf0) low_ = 0x90;   // shorter forms exist
        if (byte == 0xf4) high_ = 0x8f;  // beyond U+10FFFF
    } else {
        return false;
    }
    held_[0] = static_cast<char>(byte);
    held_count_ = 1;
    return true;
}

void Utf8Repair::push(std::string_view bytes, std::string& out) {
    for (size_t i = 0; i < bytes.size(); ++i) {
        const uint8_t byte = static_cast<uint8_t>(bytes[i]);
        if (missing_ > 0 && byte >= low_ && byte <= high_) {
            held_[held_count_++] = bytes[i];
            low_ = 0x80;
            high_ = 0xbf;
            if (--missing_ == 0) {
                out.append(held_.data(), held_count_);
                held_count_ = 0;
            }
            continue;
        }
        finish(out);  // the byte does not continue what was held: that part is ill-formed
        if (byte < 0x80) {
            out += bytes[i];
        } else if (!starts_character(byte)) {
            out += kReplacementCharacter;
        }
    }
}

void Utf8Repair::finish(std::string& out) {
    if (held_count_ > 0) out += kReplacementCharacter;
    held_count_ = 0;
    missing_ = 0;
}

size_t valid_utf8_prefix(std::string_view bytes) {
    size_t i = 0;
    while (i < bytes.size()) {
        uint64_t eight = 0;
        if (i + sizeof eight <= bytes.size()) {
            std::memcpy(&eight, bytes.data() + i, sizeof eight);
            if ((eight & 0x8080808080808080u) == 0) {
                i += sizeof eight;
                continue;
            }
        }
        const auto at = [&](size_t k) {
            return i + k < bytes.size() ? static_cast<uint8_t>(bytes[i + k]) : uint8_t{0};
        };
        const auto continues = [&](size_t k, uint8_t low, uint8_t high) {
            return at(k) >= low && at(k) <= high;
        };
        const uint8_t first = at(0);
        size_t length = 0;
        if (first < 0x80) {
            length = 1;
        } else if (first >= 0xc2 && first <= 0xdf) {
            length = continues(1, 0x80, 0xbf) ? 2 : 0;
        } else if (first >= 0xe0 && first <= 0xef) {
            const uint8_t low = first == 0xe0 ? 0xa0 : 0x80, high = first == 0xed ? 0x9f : 0xbf;
            length = continues(1, low, high) && continues(2, 0x80, 0xbf) ? 3 : 0;
        } else if (first >= 0xf0 && first <= 0xf4) {
            const uint8_t low = first == 0xf0 ? 0x90 : 0x80, high = first == 0xf4 ? 0x8f : 0xbf;
            const bool whole = continues(1, low, high) && continues(2, 0x80, 0xbf);
            length = whole && continues(3, 0x80, 0xbf) ? 4 : 0;
        }
        if (length == 0) return i;
        i += length;
    }
    return i;
}

std::string repair_utf8(std::string_view bytes) {
    std::string out;
    out.reserve(bytes.size());
    Utf8Repair repair;
    repair.push(bytes, out);
    repair.finish(out);
    return out;
}

}  // namespace tessera
