#include "grammar/keywords.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "base/error.h"

#include "grammar/regex.h"

namespace tessera::grammar {
namespace {

// Say nothing about what fits.
constexpr auto kNotes = std::to_array<std::string_view>(
    {"title", "description", "default", "example", "examples", "deprecated", "readOnly",
     "writeOnly", "$schema", "$id", "$comment", "$defs", "definitions"});

// With the type that they are about.
struct Keyword {
    std::string_view word, type;
};
constexpr auto kKeywords = std::to_array<Keyword>({
    {"type", ""},
    {"enum", ""},
    {"const", ""},
    {"anyOf", ""},
    {"oneOf", ""},
    {"allOf", ""},
    {"$ref", ""},
    {"properties", "object"},
    {"required", "object"},
    {"additionalProperties", "object"},
    {"minProperties", "object"},
    {"maxProperties", "object"},
    {"items", "array"},
    {"prefixItems", "array"},
    {"minItems", "array"},
    {"maxItems", "array"},
    {"minLength", "string"},
    {"maxLength", "string"},
    {"pattern", "string"},
    {"format", "string"},
    {"minimum", "number"},
    {"maximum", "number"},
    {"exclusiveMinimum", "number"},
    {"exclusiveMaximum", "number"},
});

constexpr auto kTypes = std::to_array<std::string_view>(
    {"null", "boolean", "object", "array", "string", "number", "integer"});

// Of days that every month and year has; of hosts, lower case and short.
struct Format {
    std::string_view name, pattern;
};
#define DATE "[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])"
#define TIME                                                                                       \
    "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?(?:Z|[+-](?:0[0-9]|1[0-4]):[0-5]" \
    "[0-9])"
#define LABEL "[a-z0-9]{1,16}(?:-[a-z0-9]{1,16})?"
#define HOST LABEL "(?:\\." LABEL "){0,3}"
#define BYTE "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
constexpr auto kFormats = std::to_array<Format>({
    {"date", "^" DATE "$"},
    {"time", "^" TIME "$"},
    {"date-time", "^" DATE "T" TIME "$"},
    {"uuid", "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"},
    {"ipv4", "^" BYTE "(?:\\." BYTE "){3}$"},
    {"email", "^[a-z0-9]{1,20}(?:[._-][a-z0-9]{1,20}){0,3}@" HOST "\\.[a-z]{2,10}$"},
    {"hostname", "^" HOST "$"},
});
#undef DATE
#undef TIME
#undef HOST
#undef LABEL
#undef BYTE

bool is_type(const Schema& value, std::string_view type) {
    if (type == "null") return value.is_null();
    if (type == "boolean") return value.is_boolean();
    if (type == "object") return value.is_object();
    if (type == "array") return value.is_array();
    if (type == "string") return value.is_string();
    if (type == "number") return value.is_number();
    return value.is_number_integer() ||
           (value.is_number_float() && value.get<double>() == std::floor(value.get<double>()));
}

// The constants that a property may be; none: anything else.
std::optional<Schema> constants_of(const Schema& schema, const std::string& name) {
    const auto properties = schema.find("properties");
    if (properties == schema.end() || !properties->is_object()) return std::nullopt;
    const auto property = properties->find(name);
    if (property == properties->end() || !property->is_object()) return std::nullopt;
    if (property->contains("const")) return Schema::array({property->at("const")});
    if (property->contains("enum") && property->at("enum").is_array()) return property->at("enum");
    return std::nullopt;
}

bool differ_in_a_constant(const Schema& a, const Schema& b) {
    if (!a.contains("required") || !a["required"].is_array()) return false;
    const auto requires_it = [](const Schema& schema, const Schema& name) {
        const auto required = schema.find("required");
        return required != schema.end() && required->is_array() &&
               std::ranges::find(*required, name) != required->end();
    };
    for (const Schema& name : a["required"]) {
        if (!name.is_string() || !requires_it(b, name)) continue;
        const auto of_a = constants_of(a, name.get<std::string>());
        const auto of_b = constants_of(b, name.get<std::string>());
        if (!of_a || !of_b) continue;
        if (std::ranges::none_of(*of_a, [&](const Schema& one) {
                return std::ranges::find(*of_b, one) != of_b->end();
            }))
            return true;
    }
    return false;
}

std::vector<std::string> types_or_constants(const Schema& schema) {
    Schema constants;
    if (schema.contains("const")) constants = Schema::array({schema["const"]});
    if (schema.contains("enum") && schema["enum"].is_array()) constants = schema["enum"];
    if (constants.is_null()) return types_of(schema, "#");
    std::vector<std::string> types;
    for (const Schema& one : constants)
        for (const std::string_view type : kTypes)
            if (is_type(one, type)) types.emplace_back(type);
    return types;
}

}  // namespace

bool says_something(std::string_view word) {
    return std::ranges::find(kNotes, word) == kNotes.end();
}

bool is_understood(std::string_view word, const Schema& value) {
    if (!says_something(word) ||
        std::ranges::find(kKeywords, word, &Keyword::word) != kKeywords.end())
        return true;
    return word == "uniqueItems" && value == Schema(false);
}

std::vector<std::string> types_of(const Schema& schema, const std::string& path) {
    std::vector<std::string> types;
    const auto add = [&](const Schema& type) {
        const std::string name = type.is_string() ? type.get<std::string>() : type.dump();
        if (std::ranges::find(kTypes, name) == kTypes.end())
            fail("{}/type: {} is no type", path, type.dump());
        if (std::ranges::find(types, name) == types.end()) types.push_back(name);
    };
    if (const auto given = schema.find("type"); given != schema.end()) {
        if (given->is_array() && given->empty()) fail("{}/type: expected a type", path);
        if (!given->is_array()) {
            add(*given);
        } else {
            for (const Schema& type : *given) add(type);
        }
        // Each whole number is a number: twice would only double the work.
        if (std::ranges::find(types, "number") != types.end()) std::erase(types, "integer");
        return types;
    }
    for (const Keyword& keyword : kKeywords)
        if (!keyword.type.empty() && schema.contains(keyword.word)) add(std::string(keyword.type));
    return types;
}

bool fits_type(const Schema& schema, const Schema& value) {
    const auto type = schema.find("type");
    if (type == schema.end()) return true;
    const auto fits = [&](const Schema& one) {
        return one.is_string() && is_type(value, one.get<std::string>());
    };
    return type->is_array() ? std::ranges::any_of(*type, fits) : fits(*type);
}

bool exclude_each_other(const Schema& a, const Schema& b) {
    if (a == Schema(false) || b == Schema(false)) return true;
    if (!a.is_object() || !b.is_object()) return false;
    const auto types = types_or_constants(a), others = types_or_constants(b);
    const auto as_number = [](const std::string& type) {
        return type == "integer" ? std::string("number") : type;
    };
    bool shared = types.empty() || others.empty();
    for (const std::string& type : types)
        for (const std::string& other : others)
            shared = shared || as_number(type) == as_number(other);
    return !shared || differ_in_a_constant(a, b);
}

std::vector<Property> properties_of(const Schema& schema, const Schema& others,
                                    const std::string& path) {
    std::vector<Property> properties;
    std::set<std::string> required;
    if (const auto given = schema.find("required"); given != schema.end()) {
        if (!given->is_array()) fail("{}/required: expected a list of names", path);
        for (const Schema& name : *given) {
            if (!name.is_string()) fail("{}/required: expected names", path);
            required.insert(name.get<std::string>());
        }
    }
    if (const auto given = schema.find("properties"); given != schema.end()) {
        if (!given->is_object()) fail("{}/properties: expected an object", path);
        for (const auto& [name, value] : given->items()) {
            const bool needed = required.erase(name) > 0;
            // Nothing fits false: one that need not be there is left out.
            if (needed || value != Schema(false)) properties.push_back({name, value, needed});
        }
    }
    for (const std::string& name : required) properties.push_back({name, others, true});
    constexpr size_t kNameBytesMax = 1024;
    for (const Property& property : properties)
        if (property.name.size() > kNameBytesMax)
            fail("{}/properties: a name of more than {} bytes", path, kNameBytesMax);
    return properties;
}

bool may_be_string(const Schema& schema) {
    if (!schema.is_object()) return true;
    const std::vector<std::string> types = types_or_constants(schema);
    return types.empty() || std::ranges::find(types, "string") != types.end();
}

std::string spelt(const Schema& value) {
    if (value.is_object() || value.is_array()) {
        std::string text = value.is_object() ? "{" : "[";
        for (const auto& [name, inner] : value.items()) {
            if (text.size() > 1) text += ", ";
            if (value.is_object()) text += Schema(name).dump() + ": ";
            text += spelt(inner);
        }
        return text + (value.is_object() ? "}" : "]");
    }
    return value.dump();
}

std::optional<Bound> bound_of(const Schema& schema, bool low, bool whole, const std::string& path) {
    constexpr double kFar = 1e18;
    std::optional<Bound> bound;
    for (const bool excluded : {false, true}) {
        const std::string word = excluded ? (low ? "exclusiveMinimum" : "exclusiveMaximum")
                                          : (low ? "minimum" : "maximum");
        const auto given = schema.find(word);
        if (given == schema.end()) continue;
        if (!given->is_number()) fail("{}/{}: expected a number", path, word);
        const double exact = given->get<double>();
        const double rounded = low ? std::ceil(exact) : std::floor(exact);
        if (rounded != exact && !whole)
            fail("{}/{}: {} is not supported: of numbers that are not whole only whole bounds are",
                 path, word, given->dump());
        Bound one{static_cast<int64_t>(std::clamp(rounded, -kFar, kFar)),
                  excluded && rounded == exact};
        const bool tighter = !bound ||
                             (low ? one.value > bound->value : one.value < bound->value) ||
                             (one.value == bound->value && one.excluded);
        if (tighter) bound = one;
    }
    return bound;
}

std::pair<uint32_t, uint32_t> counts_of(const Schema& schema, const char* least, const char* most,
                                        const std::string& path) {
    constexpr double kCountMax = 1'000'000'000;
    const auto count = [&](const char* word, uint32_t absent) {
        const auto given = schema.find(word);
        if (given == schema.end()) return absent;
        const double value = given->is_number() ? given->get<double>() : -1;
        if (!(value >= 0) || value != std::floor(value) || value > kCountMax)
            fail("{}/{}: expected a whole number from 0 to {}", path, word, kCountMax);
        return static_cast<uint32_t>(value);
    };
    const uint32_t low = count(least, 0), high = count(most, kUnbounded);
    if (low > high) fail("{}: \"{}\" is above \"{}\"", path, least, most);
    return {low, high};
}

std::optional<std::string> pattern_of(const Schema& schema, const std::string& path) {
    const auto pattern = schema.find("pattern"), format = schema.find("format");
    if (pattern != schema.end() && format != schema.end())
        fail("{}: \"format\" beside \"pattern\" is not supported", path);
    if (pattern != schema.end()) {
        if (!pattern->is_string()) fail("{}/pattern: expected a string", path);
        return pattern->get<std::string>();
    }
    if (format == schema.end()) return std::nullopt;
    const auto known = std::ranges::find_if(
        kFormats, [&](const Format& one) { return *format == std::string(one.name); });
    if (known == kFormats.end()) fail("{}: the format {} is not supported", path, format->dump());
    return std::string(known->pattern);
}

Place pattern_at(Builder& builder, const std::string& text, Builder::Spelling spelling,
                 const std::string& path, Place next) {
    try {
        return pattern(builder, text, spelling, next);
    } catch (const Error& error) {
        fail("{}: {}", path, error.what());
    }
}

}  // namespace tessera::grammar
