#include "model/keys.h"

#include <cmath>

#include "base/error.h"

namespace tessera {

Keys::Keys(const Json& object, std::string_view source) : object_(object), source_(source) {
    if (!object.is_object())
        fail("{}: expected a JSON object, found {}", source, object.type_name());
}

const Json& Keys::at(const char* key) const {
    const auto found = object_.find(key);
    if (found == object_.end()) fail("{}: the key \"{}\" is missing", source_, key);
    return *found;
}

bool Keys::has(const char* key) const {
    const auto found = object_.find(key);
    return found != object_.end() && !found->is_null();
}

uint32_t Keys::count(const char* key, uint32_t low, uint32_t high) const {
    return count_of(at(key), key, low, high);
}

uint32_t Keys::count_of(const Json& value, const char* key, uint32_t low, uint32_t high) const {
    const bool whole =
        value.is_number_unsigned() || (value.is_number_integer() && value.get<int64_t>() >= 0);
    if (!whole || value.get<uint64_t>() < low || value.get<uint64_t>() > high) {
        fail("{}: \"{}\" must be a whole number from {} to {}, found {}", source_, key, low, high,
             shown(value));
    }
    return value.get<uint32_t>();
}

float Keys::real(const char* key, double low, double high) const {
    const Json& value = at(key);
    const double number = value.is_number() ? value.get<double>() : std::nan("");
    if (!(number >= low && number <= high)) {
        fail("{}: \"{}\" must be a number from {} to {}, found {}", source_, key, low, high,
             shown(value));
    }
    return static_cast<float>(number);
}

bool Keys::flag(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!at(key).is_boolean())
        fail("{}: \"{}\" must be true or false, found {}", source_, key, shown(at(key)));
    return at(key).get<bool>();
}

std::string Keys::text(const char* key) const {
    if (!at(key).is_string())
        fail("{}: \"{}\" must be a string, found {}", source_, key, shown(at(key)));
    return at(key).get<std::string>();
}

void Keys::only(const char* key, const Json& value) const {
    if (has(key) && at(key) != value) {
        fail("{}: \"{}\" is {}, only {} is supported", source_, key, shown(at(key)), value.dump());
    }
}

std::vector<bool> Keys::layer_flags(const char* key, uint32_t layers) const {
    const Json& list = at(key);
    if (!list.is_array() || list.size() != layers) {
        fail("{}: \"{}\" must list {} layers, found {}", source_, key, layers,
             list.is_array() ? std::to_string(list.size()) : shown(list));
    }
    std::vector<bool> flags;
    for (const Json& one : list) flags.push_back(count_of(one, key, 0, 1) == 1);
    return flags;
}

std::string Keys::shown(const Json& value) {
    std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
    if (text.size() > 60) text = text.substr(0, 60) + "...";
    return text;
}

}  // namespace tessera
