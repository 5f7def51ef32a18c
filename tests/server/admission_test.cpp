#include "server/admission.h"

#include <atomic>
#include <thread>
#include <vector>

#include <gmock/gmock.h>

#include "support/temporary_store.h"

namespace tessera {
namespace {

constexpr UnixMs kNow = 1'780'000'000'000;
using Why = Refusal::Why;

// A store with one key, and an admission over it.
class AdmissionTest : public testing::Test {
  protected:
    NewKey make(KeyRules rules) {
        if (rules.name.empty()) rules.name = "a";
        Database database(store_.file());
        return create_key(database, rules, kNow);
    }
    Admission& admission() {
        if (!admission_) admission_.emplace(store_.file(), false);
        return *admission_;
    }
    // Why it was refused; none if it came in.
    std::optional<Refusal> refused(std::string_view secret, UnixMs now = kNow) {
        const auto answer = admission().authenticate(secret, now);
        const auto* refusal = std::get_if<Refusal>(&answer);
        return refusal ? std::optional(*refusal) : std::nullopt;
    }
    std::variant<Admission::Permit, Refusal> admit(UnixMs now = kNow) {
        return admission().admit(1, now);
    }

    TemporaryStore store_;
    std::optional<Admission> admission_;
};

const Refusal* refusal_in(const std::variant<Admission::Permit, Refusal>& answer) {
    return std::get_if<Refusal>(&answer);
}

TEST_F(AdmissionTest, AKeyComesInAndNothingElse) {
    const std::string secret = make({}).secret;
    const auto answer = admission().authenticate(secret, kNow);
    ASSERT_TRUE(std::holds_alternative<Admission::Caller>(answer));
    EXPECT_EQ(std::get<Admission::Caller>(answer).key, 1);
    EXPECT_EQ(std::get<Admission::Caller>(answer).name, "a");
    EXPECT_FALSE(admission().open());

    EXPECT_EQ(refused("")->why, Why::kNoKey);
    EXPECT_EQ(refused("")->status(), 401u);
    std::string wrong = secret;
    wrong.back() = wrong.back() == 'A' ? 'B' : 'A';
    for (const std::string& guess : {wrong, secret + "x", secret.substr(1), std::string("tsk-"),
                                     std::string(100'000, 'x'), std::string("\0", 1)}) {
        ASSERT_TRUE(refused(guess));
        EXPECT_EQ(refused(guess)->why, Why::kUnknownKey);
        EXPECT_EQ(refused(guess)->status(), 401u);
        EXPECT_EQ(refused(guess)->code(), "invalid_api_key");
    }
}

TEST_F(AdmissionTest, AKeyHasItsTime) {
    KeyRules rules;
    rules.valid_from = kNow + 10;
    rules.valid_until = kNow + 20;
    const std::string secret = make(rules).secret;
    const struct {
        int64_t after_ms;
        std::optional<Why> why;
    } cases[] = {{9, Why::kNotYetValid}, {10, {}}, {19, {}}, {20, Why::kNoLongerValid}};
    for (const auto& c : cases) {
        const auto answer = refused(secret, kNow + c.after_ms);
        EXPECT_EQ(answer.has_value(), c.why.has_value()) << c.after_ms;
        if (!answer || !c.why) continue;
        EXPECT_EQ(answer->why, *c.why);
        EXPECT_EQ(answer->status(), 403u);
    }
}

TEST_F(AdmissionTest, ChangesByOthersAreSeenWithinASecond) {
    const std::string first = make({}).secret;
    EXPECT_FALSE(refused(first));
    KeyRules rules;
    rules.name = "b";
    const std::string second = make(rules).secret;
    {
        Database database(store_.file());
        revoke_key(database, "a", kNow);
    }
    EXPECT_FALSE(refused(first, kNow + Admission::kRefreshMs - 1));
    EXPECT_EQ(refused(first, kNow + Admission::kRefreshMs)->why, Why::kRevoked);
    EXPECT_EQ(refused(first, kNow + Admission::kRefreshMs)->status(), 403u);
    EXPECT_FALSE(refused(second, kNow + Admission::kRefreshMs));
}

TEST_F(AdmissionTest, AStoreWithoutKeysIsOpenUntilTheFirst) {
    EXPECT_TRUE(admission().open());
    EXPECT_FALSE(refused(""));
    EXPECT_FALSE(refused("whatever clients send when they must"));
    make({});
    EXPECT_EQ(refused("", kNow + Admission::kRefreshMs)->why, Why::kNoKey);
    {
        Database database(store_.file());
        revoke_key(database, "a", kNow);
    }
    EXPECT_EQ(refused("", kNow + 2 * Admission::kRefreshMs)->why, Why::kNoKey)
        << "revoking the last key must not open the door";
}

TEST_F(AdmissionTest, RequiredKeysCloseAnEmptyStore) {
    admission_.emplace(store_.file(), true);
    EXPECT_FALSE(admission().open());
    EXPECT_EQ(refused("")->why, Why::kNoKey);
}

TEST(AdmissionOpen, EverybodyMayDoEverything) {
    Admission admission;
    const auto caller = std::get<Admission::Caller>(admission.authenticate("", kNow));
    EXPECT_EQ(caller.key, kAnonymous);
    std::vector<Admission::Permit> permits;
    for (int i = 0; i < 1000; ++i) {
        auto answer = admission.admit(caller.key, kNow);
        ASSERT_TRUE(std::holds_alternative<Admission::Permit>(answer));
        permits.push_back(std::move(std::get<Admission::Permit>(answer)));
        permits.back().charge(1'000'000'000, kNow);
    }
    for (const Mode mode : kModes) EXPECT_FALSE(permits[0].allows(mode));
}

TEST_F(AdmissionTest, ModesAreTheKeys) {
    KeyRules rules;
    rules.base = false;
    rules.ultraspeed = true;
    make(rules);
    const auto answer = admit();
    const auto& permit = std::get<Admission::Permit>(answer);
    EXPECT_FALSE(permit.allows(Mode::kUltraspeed));
    EXPECT_EQ(permit.allows(Mode::kBase)->status(), 403u);
    EXPECT_EQ(permit.allows(Mode::kBase)->code(), "mode_not_allowed");
}

TEST_F(AdmissionTest, RequestsFillEvenly) {
    KeyRules rules;
    rules.requests_per_minute = 6;  // one in ten seconds
    make(rules);
    for (int i = 0; i < 6; ++i) EXPECT_EQ(refusal_in(admit()), nullptr) << i;
    auto answer = admit();
    ASSERT_NE(refusal_in(answer), nullptr);
    EXPECT_EQ(refusal_in(answer)->why, Why::kRequests);
    EXPECT_EQ(refusal_in(answer)->status(), 429u);
    EXPECT_EQ(refusal_in(answer)->retry_after_ms, 10'000);
    EXPECT_NE(refusal_in(admit(kNow + 9'999)), nullptr);
    EXPECT_EQ(refusal_in(admit(kNow + 10'000)), nullptr) << "after the time it named";
    EXPECT_NE(refusal_in(admit(kNow + 10'000)), nullptr);
    // A long silence saves up one minute, not more.
    for (int i = 0; i < 6; ++i) EXPECT_EQ(refusal_in(admit(kNow + 10'000'000)), nullptr) << i;
    EXPECT_NE(refusal_in(admit(kNow + 10'000'000)), nullptr);
    // A clock that is set back gives nothing away.
    EXPECT_NE(refusal_in(admit(kNow)), nullptr);
    EXPECT_NE(refusal_in(admit(kNow + 9'000)), nullptr);
    EXPECT_EQ(refusal_in(admit(kNow + 10'000)), nullptr);
}

TEST_F(AdmissionTest, TokensAreChargedWhenTheyAreKnown) {
    KeyRules rules;
    rules.tokens_per_minute = 600;  // ten a second
    make(rules);
    {
        auto answer = admit();
        std::get<Admission::Permit>(answer).charge(1'000, kNow);  // 400 more than there were
    }
    auto answer = admit();
    ASSERT_NE(refusal_in(answer), nullptr);
    EXPECT_EQ(refusal_in(answer)->why, Why::kTokens);
    EXPECT_EQ(refusal_in(answer)->retry_after_ms, 40'100);  // the debt, and one token
    EXPECT_NE(refusal_in(admit(kNow + 40'099)), nullptr);
    EXPECT_EQ(refusal_in(admit(kNow + 40'100)), nullptr);
}

TEST_F(AdmissionTest, ConcurrentPlacesComeBack) {
    KeyRules rules;
    rules.concurrency = 2;
    rules.requests_per_minute = 3;
    make(rules);
    auto first = admit();
    {
        const auto second = admit();
        EXPECT_EQ(refusal_in(second), nullptr);
        const auto third = admit();
        ASSERT_NE(refusal_in(third), nullptr);
        EXPECT_EQ(refusal_in(third)->why, Why::kConcurrency);
        EXPECT_GT(refusal_in(third)->retry_after_ms, 0);
        auto moved = std::move(std::get<Admission::Permit>(first));
        EXPECT_NE(refusal_in(admit()), nullptr) << "moving a permit frees nothing";
    }
    // The refused ones were not counted as requests: one of three is left.
    EXPECT_EQ(refusal_in(admit()), nullptr);
    EXPECT_EQ(refusal_in(admit())->why, Why::kRequests);
}

TEST_F(AdmissionTest, APermitOutlivesTheAdmission) {
    KeyRules rules;
    rules.concurrency = 1;
    make(rules);
    auto permit = std::get<Admission::Permit>(admit());
    admission_.reset();
    permit.charge(5, kNow);
    EXPECT_EQ(permit.key(), 1);
}

TEST_F(AdmissionTest, LimitsHoldUnderThreads) {
    KeyRules rules;
    rules.concurrency = 3;
    rules.requests_per_minute = 500;
    const std::string secret = make(rules).secret;
    admission();
    std::atomic<int> inside = 0, most = 0, admitted = 0;
    std::vector<std::thread> threads;
    for (int t = 0; t < 8; ++t)
        threads.emplace_back([&] {
            for (int i = 0; i < 2'000; ++i) {
                if (refused(secret)) ADD_FAILURE();
                const auto answer = admit();
                if (refusal_in(answer) != nullptr) continue;
                ++admitted;
                const int now_inside = ++inside;
                for (int seen = most;
                     seen < now_inside && !most.compare_exchange_weak(seen, now_inside);)
                    continue;
                std::this_thread::yield();
                --inside;
            }
        });
    for (std::thread& thread : threads) thread.join();
    EXPECT_LE(most, 3);
    EXPECT_GE(most, 1);
    EXPECT_LE(admitted, 500);
    EXPECT_GT(admitted, 0);
}

}  // namespace
}  // namespace tessera
