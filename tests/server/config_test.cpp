#include "server/config.h"

#include <fstream>
#include <set>

#include <gmock/gmock.h>

#include "base/error.h"

#include "support/temporary_store.h"

namespace tessera {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

const Environment kEmptyEnvironment = [](const char*) { return nullptr; };

Environment with(const std::map<std::string, std::string>& variables) {
    return [variables](const char* name) -> const char* {
        const auto found = variables.find(name);
        return found != variables.end() ? found->second.c_str() : nullptr;
    };
}

ServerConfig of_file(std::string_view text) {
    return resolve({}, kEmptyEnvironment, ConfigFile::parse(text, "server.toml"));
}

template <typename Do>
void expect_refused(const Do& act, const std::string& words) {
    EXPECT_THAT(act, ThrowsMessage<Error>(HasSubstr(words)));
}

TEST(Config, TheDefaultsKeepTheirOwnRules) {
    ServerConfig config;
    for (const Setting& setting : settings()) {
        if (const auto* field = std::get_if<uint32_t ServerConfig::*>(&setting.field)) {
            EXPECT_EQ(apply(setting, std::to_string(config.**field), config), "") << setting.key;
        } else if (const auto* bytes = std::get_if<uint64_t ServerConfig::*>(&setting.field)) {
            EXPECT_EQ(apply(setting, std::to_string(config.**bytes), config), "") << setting.key;
        } else if (const auto* number = std::get_if<double ServerConfig::*>(&setting.field)) {
            EXPECT_EQ(apply(setting, std::to_string(config.**number), config), "") << setting.key;
        } else if (const auto* text = std::get_if<std::string ServerConfig::*>(&setting.field)) {
            EXPECT_EQ(apply(setting, std::string(config.**text), config), "") << setting.key;
        }
    }
}

TEST(Config, NoTwoSettingsShareAFlagOrAVariable) {
    std::set<std::string> flags, variables;
    for (const Setting& setting : settings()) {
        EXPECT_TRUE(flags.insert(setting.flag()).second) << setting.key;
        EXPECT_TRUE(variables.insert(setting.environment()).second) << setting.key;
        EXPECT_EQ(setting_of(setting.key), &setting);
    }
    EXPECT_EQ(setting_of("limits.queue_max")->flag(), "--queue-max");
    EXPECT_EQ(setting_of("limits.queue_max")->environment(), "TESSERA_QUEUE_MAX");
    EXPECT_EQ(setting_of("store")->environment(), "TESSERA_STORE");
}

// Every setting, every order of sources.
TEST(Config, FlagWinsOverEnvironmentOverFileOverDefault) {
    const ConfigFile file = ConfigFile::parse("port = 3\nhost = \"file\"\n", "server.toml");
    const Environment environment = with({{"TESSERA_PORT", "2"}, {"TESSERA_HOST", "environment"}});
    const Given flags = {{"port", "1"}, {"host", "flag"}};
    const struct {
        Given flags;
        Environment environment;
        ConfigFile file;
        uint32_t port;
        std::string host;
    } cases[] = {
        {flags, environment, file, 1, "flag"},
        {flags, environment, {}, 1, "flag"},
        {flags, kEmptyEnvironment, file, 1, "flag"},
        {{}, environment, file, 2, "environment"},
        {{}, environment, {}, 2, "environment"},
        {{}, kEmptyEnvironment, file, 3, "file"},
        {{}, kEmptyEnvironment, {}, 8080, "127.0.0.1"},
        {{{"host", "flag"}}, with({{"TESSERA_PORT", "2"}}), file, 2, "flag"},
        {{}, with({{"TESSERA_PORT", ""}}), file, 3, "file"},  // empty: not set
    };
    for (const auto& c : cases) {
        const ServerConfig config = resolve(c.flags, c.environment, c.file);
        EXPECT_EQ(config.port, c.port);
        EXPECT_EQ(config.host, c.host);
    }
}

TEST(Config, AWrongValueNamesItsSource) {
    expect_refused(
        [] {
            resolve({{"port", "many"}}, kEmptyEnvironment, {});
        },
        "--port: expected a whole number from 0 to 65535, found many");
    expect_refused(
        [] {
            resolve({}, with({{"TESSERA_PORT", "65536"}}), {});
        },
        "TESSERA_PORT: expected a whole number from 0 to 65535, found 65536");
    for (const char* text :
         {"", "-1", "1.5", "1e3", "8080 ", " 8080", "0x10", "99999999999999999999"})
        expect_refused(
            [&] {
                resolve({{"port", text}}, kEmptyEnvironment, {});
            },
            "--port: expected");
    for (const char* text : {"nan", "inf", "-1", "1e300", "soon"})
        expect_refused(
            [&] {
                resolve({{"limits.idle_s", text}}, kEmptyEnvironment, {});
            },
            "--idle-s: expected a number from 0.01 to 86400");
    for (const char* text : {"yes", "TRUE", ""})
        expect_refused(
            [&] {
                resolve({{"keys_required", text}}, kEmptyEnvironment, {});
            },
            "--keys-required: expected true or false");
    expect_refused(
        [] {
            resolve({{"log", "xml"}}, kEmptyEnvironment, {});
        },
        "--log: expected plain or json, found xml");
}

TEST(Config, AFileSaysEverySetting) {
    const ServerConfig config = of_file(R"(
        host = "::1"
        port = 0
        model = "/models/a"
        model_id = "a"
        store = "store.db"
        keys_required = true
        log = "json"
        [engine]
        threads = 4
        [limits]
        queue_max = 7
        body_bytes_max = 5_000_000_000
        header_s = 5        # a whole number is a number
        idle_s = 1.5
        [prices.default]
        cached = 0
        input = 1
        output = 2.5
        [prices."MiMo-V2.5-Pro"]
        cached = 0.0036
        input = 0.435
        output = 0.87
        ultraspeed_factor = 4
    )");
    EXPECT_EQ(config.host, "::1");
    EXPECT_EQ(config.port, 0u);
    EXPECT_EQ(config.model, "/models/a");
    EXPECT_EQ(config.model_id, "a");
    EXPECT_EQ(config.store, "store.db");
    EXPECT_TRUE(config.keys_required);
    EXPECT_EQ(config.log, "json");
    EXPECT_EQ(config.threads, 4u);
    EXPECT_EQ(config.queue_max, 7u);
    EXPECT_EQ(config.body_bytes_max, 5'000'000'000u);
    EXPECT_EQ(config.header_s, 5);
    EXPECT_EQ(config.idle_s, 1.5);
    EXPECT_EQ(config.prices_of("MiMo-V2.5-Pro").ultraspeed_factor, 4);
    EXPECT_EQ(config.prices_of("another").output, 2.5);
    EXPECT_EQ(config.prices_of("another").ultraspeed_factor, 3);
}

// docs/serve.toml is what people copy: it names every setting, and says what holds without it.
TEST(Config, TheExampleIsTheDefaults) {
    const ConfigFile file = ConfigFile::read(TESSERA_DOCS "/serve.toml");
    ServerConfig example = resolve({}, kEmptyEnvironment, file), defaults;
    for (const Setting& setting : settings()) {
        EXPECT_TRUE(file.given().contains(setting.key)) << setting.key << " is missing";
        std::visit([&](auto field) { EXPECT_EQ(example.*field, defaults.*field) << setting.key; },
                   setting.field);
    }
    const ModelPrices said = example.prices_of("any"), held = defaults.prices_of("any");
    EXPECT_EQ(said.cached, held.cached);
    EXPECT_EQ(said.input, held.input);
    EXPECT_EQ(said.output, held.output);
    EXPECT_EQ(said.ultraspeed_factor, held.ultraspeed_factor);
}

TEST(Config, WithoutPricesTheListHolds) {
    const ModelPrices prices = of_file("").prices_of("any");
    EXPECT_EQ(prices.cached, 0.0036);
    EXPECT_EQ(prices.input, 0.435);
    EXPECT_EQ(prices.output, 0.87);
    EXPECT_EQ(prices.ultraspeed_factor, 3);
}

TEST(Config, AFilesMistakesAreNamedWithTheirLine) {
    const struct {
        const char *text, *words;
    } cases[] = {
        {"\nprot = 1", "server.toml:2: there is no setting prot; did you mean port?"},
        {"[limits]\nqueue = 1",
         "server.toml:2: there is no setting limits.queue; did you mean limits.queue_max?"},
        {"queue_max = 1", "there is no setting queue_max; did you mean limits.queue_max?"},
        {"xyzzy_plugh = 1", "there is no setting xyzzy_plugh"},
        {"[limit]\nqueue_max = 1", "server.toml:1: there is no setting limit"},
        {"port = \"1\"", "server.toml:1: port: expected a whole number, found a text in quotes"},
        {"port = 1.0", "port: expected a whole number, found a number"},
        {"port = 65536",
         "server.toml:1: port: expected a whole number from 0 to 65535, found 65536"},
        {"port = -1", "port: expected a whole number from 0"},
        {"host = 1", "host: expected a text in quotes, found a whole number"},
        {"host = [\"a\"]", "host: expected a text in quotes, found a list"},
        {"keys_required = 1", "keys_required: expected true or false"},
        {"log = \"xml\"", "log: expected plain or json, found xml"},
        {"limits = 1", "limits: expected a table, found a whole number"},
        {"[limits]\nidle_s = nan", "limits.idle_s: expected a number"},
        {"port = 1\nport = 2", "server.toml:2: "},
        {"port = ", "server.toml:1: "},
        {"port = 1979-05-27", "found a date or time"},
        {"[prices.a]\ninput = 1\noutput = 1", "prices.a has no cached"},
        {"[prices.a]\ncached = 1\ninput = 1\noutput = 1\nultraspeed = 1",
         "server.toml:5: prices.a has no ultraspeed; did you mean ultraspeed_factor?"},
        {"[prices.a]\ncached = -1\ninput = 1\noutput = 1",
         "server.toml:2: prices.a.cached: expected a number from 0 to 1000"},
        {"[prices.a]\ncached = \"1\"\ninput = 1\noutput = 1", "prices.a.cached: expected a number"},
        {"[prices.a]\ncached = true\ninput = 1\noutput = 1", "prices.a.cached: expected a number"},
        {"prices.a = 1", "prices.a: expected a table of prices"},
        {"host = \"a\\u0000b\"", "host: has a zero byte"},
        {"\xff\xfe", "server.toml:1: "},
        {"port = 1\nhost = \xc3\xb0", "server.toml:2: a letter beyond ASCII outside of quotes"},
        {"\xc3\xb6 = 1", "a letter beyond ASCII outside of quotes"},
        {"host = \"a\\\"\" # \"\nmodel = \xc3\xb0", "server.toml:2: a letter beyond"},
        {"host = \"\"\"\na\"\"\"", "a text of several lines is no setting"},
        {"host = '''a'''", "a text of several lines is no setting"},
        {"host = \"\xff\"", "server.toml:1: "},
        {"port = 1\"a\"", "server.toml:1: a quote in the middle of a word"},
        {"port = [\n1.\"a\"]", "server.toml:2: a quote in the middle of a word"},
    };
    for (const auto& c : cases)
        expect_refused([&] { ConfigFile::parse(c.text, "server.toml"); }, c.words);
}

TEST(Config, TextsAndCommentsMayHaveAnyLetters) {
    const ServerConfig config = of_file(
        "\xef\xbb\xbf# f\u00fcr '\"\nmodel = \"/m\u00f6del \\\"#'\" # \u6f22\n"
        "store = '\\\u00e9\\'\nmodel_id = \"\"\n");
    EXPECT_EQ(config.model, "/m\u00f6del \"#'");
    EXPECT_EQ(config.store, "\\\u00e9\\");
    EXPECT_EQ(config.model_id, "");
}

TEST(Config, FilesAreReadWithinALimit) {
    const TemporaryStore folder;
    const std::string path = (folder.folder() / "server.toml").string();
    expect_refused([&] { ConfigFile::read(path); }, "cannot be read");
    expect_refused([&] { ConfigFile::read(folder.folder().string()); }, "cannot be read");
    std::ofstream(path) << "port = 5\n";
    EXPECT_EQ(ConfigFile::read(path).given().at("port"), "5");
    std::ofstream(path) << std::string(ConfigFile::kBytesMax + 1, '\n');
    expect_refused([&] { ConfigFile::read(path); }, "larger than");
}

}  // namespace
}  // namespace tessera
