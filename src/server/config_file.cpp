// The configuration file: TOML, strictly. What it does not know it refuses, with the line.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <utility>
#include <vector>

#define TOML_HEADER_ONLY 1
#include <toml++/toml.h>

#include "base/error.h"
#include "server/config.h"

namespace tessera {
namespace {

// Where a part of the file stands, for messages.
std::string place(std::string_view source, const toml::source_region& region) {
    return fmt::format("{}:{}", source, region.begin.line);
}

// TOML has letters beyond ASCII in texts and comments alone. toml++ 3.3 runs into a branch that it
// declares unreachable when it meets one elsewhere, or in a text of several lines: U+00A1 to U+0499
// are in no case of its is_non_ascii_horizontal_whitespace. So that is refused before it reads; no
// setting is a text of several lines. To know what is a text as toml++ does, a quote must stand
// where a key or a value begins: elsewhere it is of a word that toml++ reads on.
class Characters {
  public:
    Characters(std::string_view text, std::string_view source) : text_(text), source_(source) {}

    void check() {
        constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
        for (at_ = text_.starts_with(kByteOrderMark) ? kByteOrderMark.size() : 0;
             at_ < text_.size(); ++at_) {
            const char c = text_[at_];
            if (c == '\n')
                end_line();
            else if (inside_ != '\0')
                go_on_inside(c);
            else
                go_on_outside(c);
        }
    }

  private:
    void end_line() {
        ++line_;
        inside_ = '\0';  // a text that has not ended here is refused by toml++
        before_ = '\n';
        if (depth_ == 0) is_value_ = false;
    }

    void go_on_inside(char c) {
        if (inside_ == '"' && c == '\\') {
            if (at_ + 1 < text_.size() && text_[at_ + 1] != '\n') ++at_;
        } else if (c == inside_ && c != '#') {
            inside_ = '\0';
        }
    }

    void go_on_outside(char c) {
        if (static_cast<uint8_t>(c) >= 0x80) refuse("a letter beyond ASCII outside of quotes");
        if (c == ' ' || c == '\t' || c == '\r') return;
        if (c == '"' || c == '\'') {
            const std::string_view rest = text_.substr(at_);
            if (rest.starts_with("\"\"\"") || rest.starts_with("'''"))
                refuse("a text of several lines is no setting");
            const std::string_view begins = is_value_ ? "=[{,\n" : "=[.\n";
            if (begins.find(before_) == std::string_view::npos)
                refuse("a quote in the middle of a word");
        }
        if (c == '#' || c == '"' || c == '\'') inside_ = c;
        if (c == '=') is_value_ = true;
        if (is_value_ && (c == '[' || c == '{')) ++depth_;
        if (is_value_ && (c == ']' || c == '}') && depth_ > 0) --depth_;
        before_ = c;
    }

    [[noreturn]] void refuse(std::string_view words) const {
        fail("{}:{}: {}", source_, line_, words);
    }

    std::string_view text_, source_;
    size_t at_ = 0, line_ = 1, depth_ = 0;  // brackets open in a value
    char inside_ = '\0';                    // of a comment: #; of a text: its quote
    char before_ = '\n';                    // the last byte outside that is no blank
    bool is_value_ = false;                 // behind a =, to the end of its line or its brackets
};

// Letters to change, add or take away.
size_t distance(std::string_view a, std::string_view b) {
    std::vector<size_t> row(b.size() + 1);
    for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
    for (size_t i = 1; i <= a.size(); ++i) {
        size_t diagonal = std::exchange(row[0], i);
        for (size_t j = 1; j <= b.size(); ++j) {
            const size_t changed = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = std::min({changed, row[j] + 1, row[j - 1] + 1});
        }
    }
    return row.back();
}

// How unlike two keys are: the letters between them, or between what stands behind their dots,
// since a key may stand in the wrong table. A key that begins like another is nearly that.
size_t unlikeness(std::string_view a, std::string_view b) {
    constexpr size_t kBeginsAlike = 1;
    const auto last = [](std::string_view key) { return key.substr(key.rfind('.') + 1); };
    const bool begins = last(b).starts_with(last(a)) || last(a).starts_with(last(b));
    return std::min({distance(a, b), distance(last(a), last(b)), begins ? kBeginsAlike : SIZE_MAX});
}

// "; did you mean …?", if something is near enough.
std::string suggestion(std::string_view unknown, const std::vector<std::string_view>& known) {
    constexpr size_t kLettersMax = 100;  // no key is longer; the distance is quadratic
    if (unknown.empty() || unknown.size() > kLettersMax) return {};
    std::string_view nearest;
    size_t least = std::max<size_t>(2, unknown.size() / 3) + 1;
    for (const std::string_view key : known) {
        const size_t far = unlikeness(unknown, key);
        if (far >= least) continue;
        least = far;
        nearest = key;
    }
    return nearest.empty() ? std::string() : fmt::format("; did you mean {}?", nearest);
}

std::vector<std::string_view> known_keys() {
    std::vector<std::string_view> keys = {"prices"};
    for (const Setting& setting : settings()) keys.push_back(setting.key);
    return keys;
}

bool is_section(std::string_view name) {
    return std::ranges::any_of(settings(), [&](const Setting& setting) {
        return setting.key.starts_with(name) && setting.key.substr(name.size()).starts_with('.');
    });
}

// What TOML calls the type of a setting.
toml::node_type type_of(const Setting& setting) {
    if (std::holds_alternative<std::string ServerConfig::*>(setting.field))
        return toml::node_type::string;
    if (std::holds_alternative<bool ServerConfig::*>(setting.field))
        return toml::node_type::boolean;
    if (std::holds_alternative<double ServerConfig::*>(setting.field))
        return toml::node_type::floating_point;
    return toml::node_type::integer;
}

std::string_view type_name(toml::node_type type) {
    switch (type) {
        case toml::node_type::string:
            return "a text in quotes";
        case toml::node_type::boolean:
            return "true or false";
        case toml::node_type::floating_point:
            return "a number";
        case toml::node_type::integer:
            return "a whole number";
        case toml::node_type::table:
            return "a table";
        case toml::node_type::array:
            return "a list";
        default:
            return "a date or time";
    }
}

// A value as its flag would be given; resolve() reads it from there.
std::string text_of(const toml::node& node) {
    if (const auto* text = node.as_string()) return text->get();
    if (const auto* flag = node.as_boolean()) return flag->get() ? "true" : "false";
    if (const auto* whole = node.as_integer()) return fmt::format("{}", whole->get());
    return fmt::format("{}", node.as_floating_point()->get());
}

double price_of(const toml::table& prices, std::string_view model, std::string_view name,
                double high, std::optional<double> otherwise, std::string_view source) {
    const toml::node* node = prices.get(name);
    if (node == nullptr) {
        if (otherwise) return *otherwise;
        fail("{}: prices.{} has no {}: a price left out is no price",
             place(source, prices.source()), model, name);
    }
    const std::optional<double> value = node->value<double>();
    if (!node->is_number() || !value || !(*value >= 0 && *value <= high))
        fail("{}: prices.{}.{}: expected a number from 0 to {}", place(source, node->source()),
             model, name, high);
    return *value;
}

ModelPrices prices_in(const toml::table& prices, std::string_view model, std::string_view source) {
    const std::vector<std::string_view> known = {"cached", "input", "output", "ultraspeed_factor"};
    for (const auto& [key, node] : prices)
        if (std::ranges::find(known, key.str()) == known.end())
            fail("{}: prices.{} has no {}{}", place(source, node.source()), model, key.str(),
                 suggestion(key.str(), known));
    const auto read = [&](std::string_view name) {
        return price_of(prices, model, name, kUsdPerMillionMax, {}, source);
    };
    return {read("cached"), read("input"), read("output"),
            price_of(prices, model, "ultraspeed_factor", kUltraspeedFactorMax,
                     ModelPrices{}.ultraspeed_factor, source)};
}

}  // namespace

ConfigFile ConfigFile::parse(std::string_view text, std::string_view source) {
    Characters(text, source).check();
    toml::table root;
    try {
        root = toml::parse(text);
    } catch (const toml::parse_error& error) {
        fail("{}: {}", place(source, error.source()), error.description());
    }
    ConfigFile file;
    ServerConfig scratch;
    const auto read_setting = [&](const std::string& key, const toml::node& node) {
        const std::string where = place(source, node.source());
        const Setting* setting = setting_of(key);
        if (setting == nullptr)
            fail("{}: there is no setting {}{}", where, key, suggestion(key, known_keys()));
        const toml::node_type wanted = type_of(*setting), found = node.type();
        const bool whole_is_number =
            wanted == toml::node_type::floating_point && found == toml::node_type::integer;
        if (found != wanted && !whole_is_number)
            fail("{}: {}: expected {}, found {}", where, key, type_name(wanted), type_name(found));
        const std::string value = text_of(node);
        if (const std::string problem = apply(*setting, value, scratch); !problem.empty())
            fail("{}: {}: {}", where, key, problem);
        file.given_[key] = value;
    };
    for (const auto& [name, node] : root) {
        const std::string first(name.str());
        const toml::table* table = node.as_table();
        if (first == "prices" || is_section(first)) {
            if (table == nullptr)
                fail("{}: {}: expected a table, found {}", place(source, node.source()), first,
                     type_name(node.type()));
        } else {
            read_setting(first, node);
            continue;
        }
        for (const auto& [key, inner] : *table) {
            if (first != "prices") {
                read_setting(first + "." + std::string(key.str()), inner);
                continue;
            }
            if (!inner.is_table())
                fail("{}: prices.{}: expected a table of prices, as in [prices.\"MODEL\"]",
                     place(source, inner.source()), key.str());
            file.prices_[std::string(key.str())] = prices_in(*inner.as_table(), key.str(), source);
        }
    }
    return file;
}

ConfigFile ConfigFile::read(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    if (!stream || std::filesystem::is_directory(path)) fail("{}: cannot be read", path);
    std::string text(kBytesMax + 1, '\0');
    stream.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<size_t>(stream.gcount()));
    if (text.size() > kBytesMax)
        fail("{}: is larger than {} bytes, so no configuration", path, kBytesMax);
    return parse(text, path);
}

}  // namespace tessera
