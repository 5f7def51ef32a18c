#include "grammar/compiler.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "base/error.h"

#include "grammar/keywords.h"

namespace tessera::grammar {

// ------------------------------------------------------------------ any schema

Place Compiler::value(const Schema& schema, const std::string& path, Place next) {
    if (schema.is_boolean() && schema.get<bool>()) return any_value(kAnyDepth, next);
    if (schema.is_boolean()) return builder_.edges({});  // nothing fits: pruned
    if (!schema.is_object()) fail("{}: expected a schema, an object", path);
    check_keywords(schema, path);

    // What says all there is to say stands alone.
    for (const char* const word : {"$ref", "anyOf", "oneOf", "allOf"}) {
        const auto given = schema.find(word);
        if (given == schema.end()) continue;
        for (const auto& [other, unused] : schema.items())
            if (other != word && says_something(other))
                fail("{}: \"{}\" beside \"{}\" is not supported", path, other, word);
        const std::string inside = path + "/" + word;
        if (given.key() == "$ref") {
            if (!given->is_string()) fail("{}: expected a string", inside);
            return reference(given->get<std::string>(), inside, next);
        }
        if (!given->is_array() || given->empty())
            fail("{}: expected a list of at least one schema", inside);
        if (given.key() == "allOf" && given->size() > 1)
            fail("{}: more than one schema in \"allOf\" is not supported", path);
        if (given.key() == "oneOf") check_exclusive(*given, path);
        return alternatives(*given, inside, next);
    }
    if (const auto one = schema.find("const"); one != schema.end())
        return listed(Schema::array({*one}), schema, next);
    if (const auto some = schema.find("enum"); some != schema.end()) {
        if (!some->is_array() || some->empty())
            fail("{}/enum: expected a list of at least one value", path);
        return listed(*some, schema, next);
    }

    std::vector<std::string> types = types_of(schema, path);
    if (types.empty()) return any_value(kAnyDepth, next);
    std::vector<Place> places;
    for (const std::string& type : types) places.push_back(typed(schema, type, path, next));
    return builder_.either(std::move(places));
}

void Compiler::check_keywords(const Schema& schema, const std::string& path) const {
    for (const auto& [word, value] : schema.items())
        if (!is_understood(word, value)) fail("{}: \"{}\" is not supported", path, word);
}

Place Compiler::typed(const Schema& schema, const std::string& type, const std::string& path,
                      Place next) {
    if (type == "null") return builder_.bytes("null", next);
    if (type == "boolean") return builder_.any_of({"true", "false"}, next);
    if (type == "object") return object(schema, path, next);
    if (type == "array") return array(schema, path, next);
    if (type == "string") return string(schema, path, next);
    return number(schema, type == "integer", path, next);
}

Place Compiler::alternatives(const Schema& branches, const std::string& path, Place next) {
    std::vector<Place> places;
    std::set<std::string> seen;  // the same twice would only double the work
    for (size_t i = 0; i < branches.size(); ++i)
        if (seen.insert(branches[i].dump()).second)
            places.push_back(value(branches[i], fmt::format("{}/{}", path, i), next));
    return builder_.either(std::move(places));
}

// ------------------------------------------------------------------ references

Place Compiler::reference(const std::string& to, const std::string& path, Place next) {
    auto known = references_.find(to);
    if (known == references_.end()) {
        resolve(to, path);  // is there
        known = references_.emplace(to, builder_.declare()).first;
        undefined_.emplace_back(to, known->second);
    }
    return builder_.call(known->second, next);
}

const Schema& Compiler::resolve(const std::string& to, const std::string& path) const {
    if (to == "#") return root_;
    if (!to.starts_with("#/")) fail("{}: \"{}\" does not begin with #/", path, to);
    try {
        return root_.at(Schema::json_pointer(to.substr(1)));
    } catch (const Schema::exception&) {
        fail("{}: \"{}\" is not in the schema", path, to);
    }
}

// In turn rather than one inside the other: a chain of references may be long.
void Compiler::finish() {
    while (!undefined_.empty()) {
        const auto next = undefined_.front();
        undefined_.pop_front();
        const std::string& path = next.first;
        const Schema& schema = resolve(path, path);
        builder_.define(next.second, [&](Place end) { return value(schema, path, end); });
    }
}

// A text that fits two branches would fit none: each two must differ in type, or in what a property
// that both require may be.
void Compiler::check_exclusive(const Schema& branches, const std::string& path) const {
    constexpr size_t kBranchesMax = 256;  // each is held against each
    if (branches.size() > kBranchesMax)
        fail("{}: more than {} branches in \"oneOf\"", path, kBranchesMax);
    const auto followed = [&](const Schema* schema) {
        for (int hops = 0; hops < 16 && schema->is_object() && schema->contains("$ref"); ++hops) {
            const Schema& to = schema->at("$ref");
            if (!to.is_string()) break;
            schema = &resolve(to.get<std::string>(), path + "/oneOf");
        }
        return schema;
    };
    for (size_t a = 0; a < branches.size(); ++a)
        for (size_t b = 0; b < a; ++b)
            if (!exclude_each_other(*followed(&branches[a]), *followed(&branches[b])))
                fail(
                    "{}: branches {} and {} of \"oneOf\" may both fit: give a property that both "
                    "require different \"const\" values, or write \"anyOf\"",
                    path, b, a);
}

// ------------------------------------------------------------------ values

Place Compiler::listed(const Schema& values, const Schema& schema, Place next) {
    std::vector<std::string> texts;
    for (const Schema& value : values)
        if (fits_type(schema, value)) texts.push_back(spelt(value));
    if (texts.empty()) return builder_.edges({});
    return builder_.any_of(std::move(texts), next);
}

Place Compiler::any_value(uint32_t depth, Place next) {
    while (any_.size() <= depth) {
        const auto level = static_cast<uint32_t>(any_.size());
        any_.push_back(builder_.declare());
        builder_.define(any_[level], [&](Place end) {
            std::vector<Place> places = {builder_.any_of({"true", "false", "null"}, end),
                                         any_number(false, end), builder_.text(0, kUnbounded, end)};
            if (level > 0) {
                const auto item = [&](Place after) { return any_value(level - 1, after); };
                places.push_back(any_object(level, end));
                places.push_back(builder_.bytes(
                    "[", builder_.list(item, ", ", 0, kUnbounded, builder_.bytes("]", end))));
            }
            return builder_.either(std::move(places));
        });
    }
    return builder_.call(any_[depth], next);
}

Place Compiler::any_object(uint32_t depth, Place next) {
    const auto pair = [&](Place after) {
        return builder_.text(0, kUnbounded, builder_.bytes(": ", any_value(depth - 1, after)));
    };
    return builder_.bytes("{", builder_.list(pair, ", ", 0, kUnbounded, builder_.bytes("}", next)));
}

Place Compiler::any_number(bool whole, Place next) {
    std::optional<Builder::Rule>& rule = whole ? whole_ : number_;
    if (!rule) {
        rule = builder_.declare();
        builder_.define(*rule, [&](Place end) {
            return whole ? whole_numbers(builder_, {}, {}, end) : numbers(builder_, {}, {}, end);
        });
    }
    return builder_.call(*rule, next);
}

Place Compiler::number(const Schema& schema, bool whole, const std::string& path, Place next) {
    const std::optional<Bound> low = bound_of(schema, true, whole, path);
    const std::optional<Bound> high = bound_of(schema, false, whole, path);
    if (!low && !high) return any_number(whole, next);
    try {
        return whole ? whole_numbers(builder_, low, high, next)
                     : numbers(builder_, low, high, next);
    } catch (const Error& error) {
        fail("{}: {}", path, error.what());
    }
}

Place Compiler::string(const Schema& schema, const std::string& path, Place next) {
    const auto [low, high] = counts_of(schema, "minLength", "maxLength", path);
    const std::optional<std::string> shape = pattern_of(schema, path);
    if (!shape) return builder_.text(low, high, next);
    if (low > 0 || high != kUnbounded)
        fail(
            "{}: \"minLength\" and \"maxLength\" beside \"pattern\" or \"format\" are not "
            "supported: "
            "say it in the pattern",
            path);
    return builder_.bytes("\"", pattern_at(builder_, *shape, Builder::Spelling::kJson, path,
                                           builder_.bytes("\"", next)));
}

std::optional<Place> Compiler::raw(const Schema& schema, const std::string& path, Place next) {
    if (!schema.is_object()) return std::nullopt;
    check_keywords(schema, path);
    if (const auto to = schema.find("$ref"); to != schema.end() && to->is_string()) {
        // One hop alone: what refers on and on is free text.
        const Schema& there = resolve(to->get<std::string>(), path);
        return there.is_object() && !there.contains("$ref") ? raw(there, path, next) : std::nullopt;
    }
    for (const char* const word : {"anyOf", "oneOf", "allOf"}) {
        const auto branches = schema.find(word);
        if (branches == schema.end() || !branches->is_array()) continue;
        std::vector<Place> places;
        for (const Schema& branch : *branches) {
            if (!may_be_string(branch)) continue;
            const std::optional<Place> one = raw(branch, path, next);
            if (!one) return std::nullopt;
            places.push_back(*one);
        }
        if (places.empty()) return std::nullopt;
        return builder_.either(std::move(places));
    }
    const auto one = schema.find("const"), some = schema.find("enum");
    if (one != schema.end() || (some != schema.end() && some->is_array())) {
        std::vector<std::string> texts;
        for (const Schema& value : one != schema.end() ? Schema::array({*one}) : *some)
            if (value.is_string()) texts.push_back(value.get<std::string>());
        if (texts.empty()) return std::nullopt;
        return builder_.any_of(std::move(texts), next);
    }
    if (const std::optional<std::string> shape = pattern_of(schema, path))
        return pattern_at(builder_, *shape, Builder::Spelling::kRaw, path, next);
    const auto [low, high] = counts_of(schema, "minLength", "maxLength", path);
    if (low == 0 && high == kUnbounded) return std::nullopt;
    const auto character = [&](Place after) {
        return builder_.character(complement({}), Builder::Spelling::kRaw, after);
    };
    return builder_.repeated(character, low, high, next);
}

// ------------------------------------------------------------------ lists

Place Compiler::array(const Schema& schema, const std::string& path, Place next) {
    const auto [low, high] = counts_of(schema, "minItems", "maxItems", path);
    static const Schema kNone = Schema::array(), kAny = true;
    const auto prefix_at = schema.find("prefixItems"), items_at = schema.find("items");
    const Schema& prefix = prefix_at != schema.end() ? *prefix_at : kNone;
    if (!prefix.is_array()) fail("{}/prefixItems: expected a list of schemas", path);
    const Schema& items = items_at != schema.end() ? *items_at : kAny;
    const auto fixed = static_cast<uint32_t>(prefix.size());
    if (high < fixed) fail("{}: \"maxItems\" below the number of \"prefixItems\"", path);
    const auto item = [&](Place after) { return value(items, path + "/items", after); };

    Place rest = builder_.bytes("]", next);
    const uint32_t more = low > fixed ? low - fixed : 0;
    const uint32_t most = high == kUnbounded ? kUnbounded : high - fixed;
    if (fixed == 0) {
        rest = builder_.list(item, ", ", more, most, rest);
    } else if (more > 0 || (most > 0 && items_at != schema.end())) {
        const Place others =
            builder_.bytes(", ", builder_.list(item, ", ", std::max(more, 1u), most, rest));
        rest = more > 0 ? others : builder_.either({others, rest});
    }
    for (size_t i = prefix.size(); i-- > 0;) {
        rest = value(prefix[i], fmt::format("{}/prefixItems/{}", path, i), rest);
        if (i > 0) rest = builder_.bytes(", ", rest);
    }
    return builder_.bytes("[", rest);
}

// ------------------------------------------------------------------ objects

// Each name is reached behind its opening quote, so that ", " and the quote are taken once,
// whichever of the optional properties comes next.
Place Compiler::object(const Schema& schema, const std::string& path, Place next) {
    static const Schema kAny = true;
    const auto others_at = schema.find("additionalProperties");
    const bool says_others = others_at != schema.end();
    const Schema& others = says_others ? *others_at : kAny;
    const std::vector<Property> properties = properties_of(schema, others, path);
    const auto [low, high] = counts_of(schema, "minProperties", "maxProperties", path);
    const auto needed =
        static_cast<uint32_t>(std::ranges::count_if(properties, &Property::required));
    const auto known = static_cast<uint32_t>(properties.size());
    // Of names that are free nobody knows that they differ.
    if (low > std::max(needed, known == 0 ? 1u : 0u))
        fail("{}: \"minProperties\" beyond what is required is not supported", path);
    if (high < known) fail("{}: \"maxProperties\" below the number of properties", path);

    const Place close = builder_.bytes("}", next);
    // Where a name begins that may come next; none if there is none.
    std::optional<Place> name;
    const bool has_others = others != Schema(false) && (says_others || known == 0) && high > known;
    if (has_others) {
        std::vector<std::string> taken;
        for (const Property& property : properties) {
            taken.push_back(spelt(property.name).substr(1));
            if (taken.back().size() != property.name.size() + 1)
                fail(
                    "{}/properties: {} needs escapes, which beside other properties is not "
                    "supported",
                    path, spelt(property.name));
        }
        std::ranges::sort(taken);
        const Builder::Rule pair = builder_.declare();
        builder_.define(pair, [&](Place end) {
            const Place told =
                builder_.bytes(": ", value(others, path + "/additionalProperties", end));
            const Place free = builder_.text_inside(0, kUnbounded, told);
            return taken.empty() ? free : other_key(taken, 0, free, told);
        });
        const auto quoted = [&](Place after) {
            return builder_.bytes("\"", builder_.call(pair, after));
        };
        const uint32_t most = high == kUnbounded ? kUnbounded : high - known;
        if (known == 0) return builder_.bytes("{", builder_.list(quoted, ", ", low, most, close));
        Place after = close;
        if (most > 1)
            after = builder_.either(
                {builder_.bytes(", ", builder_.list(quoted, ", ", 1,
                                                    most == kUnbounded ? most : most - 1, close)),
                 close});
        name = builder_.call(pair, after);
    }
    bool may_end = true;  // of what stands before: nothing else is required
    for (size_t i = properties.size(); i-- > 0;) {
        const Property& property = properties[i];
        std::vector<Place> after;
        if (name) after.push_back(builder_.bytes(", \"", *name));
        if (may_end) after.push_back(close);
        const Place told = value(property.schema, path + "/properties/" + property.name,
                                 builder_.either(std::move(after)));
        // spelt() begins with the quote that was taken.
        const Place here = builder_.bytes(spelt(property.name).substr(1) + ": ", told);
        name = property.required || !name ? here : builder_.either({here, *name});
        may_end = may_end && !property.required;
    }
    std::vector<Place> begin;
    if (name) begin.push_back(builder_.bytes("\"", *name));
    if (may_end) begin.push_back(close);
    return builder_.bytes("{", builder_.either(std::move(begin)));
}

// A name, behind its opening quote and with its closing one, that is none of `sorted` (spelt, with
// their closing quotes): it leaves them at a plain character, after which it is free.
Place Compiler::other_key(std::span<const std::string> sorted, size_t depth, Place free,
                          Place next) {
    ByteSet plain = ByteSet::range(0x20, 0x7e) - ByteSet::of('"') - ByteSet::of('\\');
    bool taken = false;
    std::vector<Edge> edges;
    for (size_t begin = 0; begin < sorted.size();) {
        const char byte = sorted[begin][depth];
        size_t end = begin;
        while (end < sorted.size() && sorted[end][depth] == byte) ++end;
        const ByteSet one = ByteSet::of(static_cast<uint8_t>(byte));
        plain = plain - one;
        if (byte == '"') {
            taken = true;
        } else {
            edges.push_back(
                {one, other_key(sorted.subspan(begin, end - begin), depth + 1, free, next)});
        }
        begin = end;
    }
    edges.push_back({plain, free});
    if (!taken) edges.push_back({ByteSet::of('"'), next});
    return builder_.edges(std::move(edges));
}

}  // namespace tessera::grammar
