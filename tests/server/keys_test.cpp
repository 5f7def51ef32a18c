#include "server/keys.h"

#include <fstream>
#include <iterator>
#include <set>

#include <gmock/gmock.h>
#include <sys/stat.h>

#include "base/error.h"

#include "support/temporary_store.h"

namespace tessera {
namespace {

using testing::HasSubstr;
using testing::MatchesRegex;
using testing::ThrowsMessage;

KeyRules named(std::string name) {
    KeyRules rules;
    rules.name = std::move(name);
    return rules;
}

template <typename Do>
void expect_refused(const Do& act, const std::string& words) {
    EXPECT_THAT(act, ThrowsMessage<Error>(HasSubstr(words)));
}

TEST(Secret, IsLongRandomAndNamesItsKind) {
    std::set<std::string> seen;
    for (int i = 0; i < 100; ++i) {
        const std::string secret = new_secret();
        EXPECT_THAT(secret, MatchesRegex("tsk-[A-Za-z0-9_-]{43}"));
        EXPECT_TRUE(seen.insert(secret).second);
    }
}

TEST(Secret, HashIsSha256) {
    // FIPS 180-2, appendix B.1: "abc".
    const SecretHash hash = hash_of("abc");
    EXPECT_EQ(hash[0], 0xba);
    EXPECT_EQ(hash[1], 0x78);
    EXPECT_EQ(hash[31], 0xad);
    SecretHash other = hash;
    EXPECT_TRUE(equal_in_constant_time(hash, other));
    other[31] ^= 1;
    EXPECT_FALSE(equal_in_constant_time(hash, other));
}

TEST(Keys, ComeBackAsTheyWereMade) {
    const TemporaryStore store;
    KeyRules rules = named("launch");
    rules.base = false;
    rules.ultraspeed = true;
    rules.valid_from = 1'000;
    rules.valid_until = 2'000;
    rules.requests_per_minute = 60;
    rules.tokens_per_minute = 4'000'000'000;
    rules.concurrency = 8;
    std::string secret;
    {
        Database database(store.file());
        const NewKey made = create_key(database, rules, 500);
        EXPECT_EQ(made.id, 1);
        secret = made.secret;
    }
    Database database(store.file());
    const std::vector<Key> keys = all_keys(database);
    ASSERT_EQ(keys.size(), 1u);
    EXPECT_EQ(keys[0].hash, hash_of(secret));
    EXPECT_EQ(keys[0].created, 500);
    EXPECT_FALSE(keys[0].revoked);
    EXPECT_EQ(keys[0].rules.name, "launch");
    EXPECT_FALSE(keys[0].rules.allows(Mode::kBase));
    EXPECT_TRUE(keys[0].rules.allows(Mode::kUltraspeed));
    EXPECT_EQ(keys[0].rules.valid_from, 1'000);
    EXPECT_EQ(keys[0].rules.valid_until, 2'000);
    EXPECT_EQ(keys[0].rules.requests_per_minute, 60u);
    EXPECT_EQ(keys[0].rules.tokens_per_minute, 4'000'000'000u);
    EXPECT_EQ(keys[0].rules.concurrency, 8u);
}

TEST(Keys, TheSecretIsInNoFileOfTheStore) {
    const TemporaryStore store;
    Database database(store.file());
    const std::string secret = create_key(database, named("a"), 0).secret;
    size_t files = 0;
    for (const auto& entry : std::filesystem::directory_iterator(store.folder())) {
        std::ifstream file(entry.path(), std::ios::binary);
        const std::string bytes{std::istreambuf_iterator<char>(file), {}};
        EXPECT_EQ(bytes.find(secret.substr(4)), std::string::npos) << entry.path();
        files += bytes.find("SQLite") != std::string::npos;
        struct stat about {};
        ASSERT_EQ(stat(entry.path().c_str(), &about), 0);
        EXPECT_EQ(about.st_mode & 077, 0u) << entry.path() << " is readable by others";
    }
    EXPECT_GE(files, 1u);
}

TEST(Keys, BadRulesAreRefusedWithTheReason) {
    const TemporaryStore store;
    Database database(store.file());
    const auto refused = [&](const KeyRules& rules, const std::string& words) {
        expect_refused([&] { create_key(database, rules, 0); }, words);
    };
    refused(named(""), "needs a name");
    refused(named("a\nb"), "control character");
    refused(named("a\xff"), "not UTF-8");
    refused(named("12"), "is a number");
    refused(named(std::string(101, 'a')), "at most 100");
    KeyRules rules = named("a");
    rules.base = false;
    refused(rules, "needs a mode");
    rules = named("a");
    rules.valid_from = rules.valid_until = 5;
    refused(rules, "end before it begins");
    EXPECT_TRUE(all_keys(database).empty());
    create_key(database, named("a"), 0);
    refused(named("a"), "there is a key named a");
}

TEST(Keys, ARevokedNameIsFreeAgain) {
    const TemporaryStore store;
    Database database(store.file());
    create_key(database, named("a"), 0);
    EXPECT_EQ(revoke_key(database, "a", 7).id, 1);
    expect_refused([&] { revoke_key(database, "a", 8); }, "revoked already");
    expect_refused([&] { revoke_key(database, "1", 8); }, "revoked already");
    expect_refused([&] { revoke_key(database, "b", 8); }, "no key b");
    EXPECT_EQ(create_key(database, named("a"), 9).id, 2);
    EXPECT_EQ(revoke_key(database, "a", 10).id, 2) << "the living one is meant";
    const std::vector<Key> keys = all_keys(database);
    EXPECT_EQ(keys[0].revoked, 7);
    EXPECT_EQ(keys[1].revoked, 10);
}

TEST(Keys, EveryChangeIsAVersionToOtherConnections) {
    const TemporaryStore store;
    Database one(store.file()), other(store.file());
    const int64_t before = keys_version(other);
    create_key(one, named("a"), 0);
    const int64_t created = keys_version(other);
    EXPECT_GT(created, before);
    revoke_key(one, "a", 1);
    EXPECT_GT(keys_version(other), created);
}

TEST(Store, RefusesWhatIsNotOne) {
    const TemporaryStore store;
    expect_refused([&] { Database(store.file(), Database::Open::kMustExist); }, "no such store");
    EXPECT_FALSE(std::filesystem::exists(store.file()));
    expect_refused([&] { Database(store.folder() / "no" / "folder.db"); }, "cannot be opened");
    std::ofstream(store.folder() / "text.db") << std::string(4096, 'x');
    expect_refused([&] { Database(store.folder() / "text.db"); }, "not a database");
    {
        Database database(store.file());
        database.execute("PRAGMA user_version = 99");
    }
    expect_refused([&] { Database(store.file()); }, "newer tessera");
    {
        Database database(store.folder() / "other.db");
        database.execute("PRAGMA application_id = 7");
    }
    expect_refused([&] { Database(store.folder() / "other.db"); }, "not one of tessera's");
}

}  // namespace
}  // namespace tessera
