#include "base/json.h"

#include <set>
#include <string>
#include <vector>

#include "base/error.h"

namespace tessera {
namespace {

// One pass over the bytes, aware of strings: refuses depth before the recursive parser sees it and,
// where allowed, drops the commas that stand before a closing bracket.
std::string admit(std::string_view text, std::string_view source, const JsonLimits& limits) {
    std::string admitted;
    admitted.reserve(text.size());
    size_t depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (in_string) {
            admitted += c;
            if (c == '\\' && i + 1 < text.size()) admitted += text[++i];
            if (c == '"') in_string = false;
            continue;
        }
        if (c == '"') in_string = true;
        if ((c == '[' || c == '{') && ++depth > limits.depth_max) {
            fail("{}: JSON nests deeper than {} levels at byte {}", source, limits.depth_max, i);
        }
        if ((c == ']' || c == '}') && depth > 0) --depth;
        if (c == ',' && limits.trailing_commas) {
            const size_t next = text.find_first_not_of(" \t\r\n", i + 1);
            if (next != std::string_view::npos && (text[next] == ']' || text[next] == '}'))
                continue;
        }
        admitted += c;
    }
    return admitted;
}

// Refuses the second of two equal keys in one object, in a pass of its own: the parser's callback
// would see the keys too, but with one the library searches the whole parent after every value that
// ends inside it (3.11), which took 16 s for a safetensors header of 40,000 tensors.
class KeyWatch : public nlohmann::json_sax<Json> {
  public:
    explicit KeyWatch(std::string_view source) : source_(source) {}

    bool start_object(size_t) override {
        keys_.emplace_back();
        return true;
    }
    bool end_object() override {
        keys_.pop_back();
        return true;
    }
    bool key(std::string& name) override {
        if (!keys_.back().insert(name).second) {
            fail("{}: the key \"{:.80}\" appears twice in one object", source_, name);
        }
        return true;
    }
    // What is not valid JSON ends the pass here and is told by the parser.
    bool parse_error(size_t, const std::string&, const Json::exception&) override { return false; }

    bool null() override { return true; }
    bool boolean(bool) override { return true; }
    bool number_integer(int64_t) override { return true; }
    bool number_unsigned(uint64_t) override { return true; }
    bool number_float(double, const std::string&) override { return true; }
    bool string(std::string&) override { return true; }
    bool binary(Json::binary_t&) override { return true; }
    bool start_array(size_t) override { return true; }
    bool end_array() override { return true; }

  private:
    std::string_view source_;
    std::vector<std::set<std::string>> keys_;  // of the objects that are open, innermost last
};

template <typename AnyJson>
AnyJson parse(std::string_view text, std::string_view source, const JsonLimits& limits) {
    if (text.size() > limits.bytes_max) {
        fail("{}: {} bytes of JSON, at most {} are accepted", source, text.size(),
             limits.bytes_max);
    }
    const std::string admitted = admit(text, source, limits);
    // The library takes a zero byte for the end of the text; others read on.
    if (const size_t zero = text.find('\0'); zero != text.npos) {
        fail("{}: not valid JSON: a zero byte at byte {}", source, zero);
    }
    KeyWatch watch(source);
    Json::sax_parse(admitted, &watch);
    try {
        return AnyJson::parse(admitted);
    } catch (const Json::exception& broken) {
        // The library repeats the token it met, however long.
        fail("{}: not valid JSON: {:.200}", source, broken.what());
    }
}

}  // namespace

Json parse_json(std::string_view text, std::string_view source, const JsonLimits& limits) {
    return parse<Json>(text, source, limits);
}

nlohmann::ordered_json parse_json_in_order(std::string_view text, std::string_view source,
                                           const JsonLimits& limits) {
    return parse<nlohmann::ordered_json>(text, source, limits);
}

}  // namespace tessera
