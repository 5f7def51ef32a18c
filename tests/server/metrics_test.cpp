#include "server/metrics.h"

#include <algorithm>
#include <map>
#include <sstream>
#include <thread>

#include <gmock/gmock.h>

namespace tessera {
namespace {

using testing::HasSubstr;
using testing::Not;

// The exposition, read as a scraper reads it: series with its labels -> value.
std::map<std::string, double> scrape(Metrics& metrics) {
    std::map<std::string, double> series;
    std::istringstream lines(metrics.text());
    for (std::string line; std::getline(lines, line);) {
        if (line.empty() || line[0] == '#') continue;
        const size_t space = line.rfind(' ');
        series[line.substr(0, space)] = std::stod(line.substr(space + 1));
    }
    return series;
}

TEST(Metrics, ARequestIsCountedUnderItsModel) {
    Metrics metrics("mini", "mini-ultraspeed");
    metrics.request_started(Mode::kBase, 100, 40);
    metrics.first_token(Mode::kBase, 0.02);
    metrics.tokens_between(Mode::kBase, 0.008, 4);  // four tokens of 2 ms each
    metrics.tokens_generated(Mode::kBase, 5);
    metrics.request_ended(Mode::kBase, Ended::kLength, {0.001, 0.019, 0.008, 0.028});
    metrics.request_started(Mode::kUltraspeed, 7, 0);
    auto seen = scrape(metrics);
    const auto of = [&](const std::string& name, const std::string& more = "") {
        const std::string key = name + "{" + more + "model_name=\"mini\"}";
        return seen.contains(key) ? seen[key] : -1;
    };
    EXPECT_EQ(of("tessera_request_started_total"), 1);
    EXPECT_EQ(of("tessera_prompt_tokens_total"), 100);
    EXPECT_EQ(of("tessera_prefix_cache_queries_total"), 100);
    EXPECT_EQ(of("tessera_prefix_cache_hits_total"), 40);
    EXPECT_EQ(of("tessera_generation_tokens_total"), 5);
    EXPECT_EQ(of("tessera_request_success_total", "finished_reason=\"length\","), 1);
    EXPECT_EQ(of("tessera_request_success_total", "finished_reason=\"stop\","), 0);
    EXPECT_EQ(of("tessera_time_to_first_token_seconds_count"), 1);
    EXPECT_EQ(of("tessera_inter_token_latency_seconds_count"), 4);
    EXPECT_NEAR(of("tessera_inter_token_latency_seconds_sum"), 0.008, 1e-9);
    EXPECT_NEAR(of("tessera_request_queue_time_seconds_sum"), 0.001, 1e-9);
    EXPECT_NEAR(of("tessera_request_prefill_time_seconds_sum"), 0.019, 1e-9);
    EXPECT_NEAR(of("tessera_request_decode_time_seconds_sum"), 0.008, 1e-9);
    EXPECT_NEAR(of("tessera_e2e_request_latency_seconds_sum"), 0.028, 1e-9);
    EXPECT_EQ(seen["tessera_prompt_tokens_total{model_name=\"mini-ultraspeed\"}"], 7);
}

TEST(Metrics, LatencyBucketsBeginBelowAStep) {
    EXPECT_EQ(latency_buckets().front(), 0.00025);
    EXPECT_TRUE(std::ranges::is_sorted(latency_buckets()));
    Metrics metrics("m", "u");
    metrics.tokens_between(Mode::kBase, 0.0002, 1);
    metrics.tokens_between(Mode::kBase, 0.0003, 1);
    auto seen = scrape(metrics);
    const auto bucket = [&](const char* end) {
        return seen["tessera_inter_token_latency_seconds_bucket{model_name=\"m\",le=\"" +
                    std::string(end) + "\"}"];
    };
    EXPECT_EQ(bucket("0.00025"), 1);
    EXPECT_EQ(bucket("0.0005"), 2);
    EXPECT_EQ(bucket("+Inf"), 2);
}

TEST(Metrics, DraftsAreCountedByPlace) {
    Metrics metrics("m", "u");
    metrics.draft_round(7, 3);
    metrics.draft_round(2, 0);
    metrics.draft_round(1, 1);
    auto seen = scrape(metrics);
    EXPECT_EQ(seen["tessera_spec_decode_num_drafts_total"], 3);
    EXPECT_EQ(seen["tessera_spec_decode_num_draft_tokens_total"], 10);
    EXPECT_EQ(seen["tessera_spec_decode_num_accepted_tokens_total"], 4);
    const double expected[] = {2, 1, 1, 0, 0, 0, 0};
    for (size_t at = 0; at < 7; ++at)
        EXPECT_EQ(seen["tessera_spec_decode_num_accepted_tokens_per_pos_total{position=\"" +
                       std::to_string(at) + "\"}"],
                  expected[at]);
}

TEST(Metrics, RefusalsMakeNoNewSeries) {
    Metrics metrics("m", "u");
    const size_t before = scrape(metrics).size();
    for (uint32_t status = 0; status < 1000; ++status) metrics.refused(status);
    auto seen = scrape(metrics);
    EXPECT_EQ(seen.size(), before);
    EXPECT_EQ(seen["tessera_request_refused_total{status=\"429\"}"], 1);
    EXPECT_EQ(seen["tessera_request_refused_total{status=\"other\"}"], 987);
}

TEST(Metrics, GaugesAreAskedAtEveryText) {
    Metrics metrics("m", "u");
    EXPECT_THAT(metrics.text(), Not(HasSubstr("tessera_num_requests_running")));
    double running = 3, failures = 2;
    Metrics::Gauges gauges;
    gauges.running = [&] { return running; };
    gauges.ledger_failures = [&] { return failures; };
    metrics.watch(std::move(gauges));
    auto seen = scrape(metrics);
    EXPECT_EQ(seen["tessera_num_requests_running"], 3);
    EXPECT_EQ(seen["tessera_ledger_failures_total"], 2);
    EXPECT_FALSE(seen.contains("tessera_num_requests_waiting"));
    running = 1;
    failures = 5;
    seen = scrape(metrics);
    EXPECT_EQ(seen["tessera_num_requests_running"], 1);
    EXPECT_EQ(seen["tessera_ledger_failures_total"], 5);
}

TEST(Metrics, ModelNamesAreEscaped) {
    Metrics metrics("a\"b\nc\\", "u");
    EXPECT_THAT(metrics.text(), HasSubstr("model_name=\"a\\\"b\\nc\\\\\""));
}

TEST(Metrics, EveryFamilyHasHelpAndOneType) {
    Metrics metrics("m", "u");
    std::map<std::string, int> types;
    std::istringstream lines(metrics.text());
    for (std::string line; std::getline(lines, line);)
        if (line.starts_with("# TYPE ")) ++types[line.substr(7, line.find(' ', 7) - 7)];
    EXPECT_GE(types.size(), 18u);
    for (const auto& [name, times] : types) {
        EXPECT_EQ(times, 1) << name;
        EXPECT_TRUE(name.starts_with("tessera_")) << name;
        EXPECT_THAT(metrics.text(), HasSubstr("# HELP " + name + " "));
    }
}

TEST(Metrics, CountFromManyThreads) {
    Metrics metrics("m", "u");
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t)
        threads.emplace_back([&] {
            for (int i = 0; i < 1000; ++i) {
                metrics.request_started(Mode::kBase, 1, 0);
                metrics.tokens_between(Mode::kBase, 0.001, 2);
                if (i % 100 == 0) metrics.text();
            }
        });
    for (std::thread& thread : threads) thread.join();
    auto seen = scrape(metrics);
    EXPECT_EQ(seen["tessera_request_started_total{model_name=\"m\"}"], 4000);
    EXPECT_EQ(seen["tessera_inter_token_latency_seconds_count{model_name=\"m\"}"], 8000);
}

}  // namespace
}  // namespace tessera
