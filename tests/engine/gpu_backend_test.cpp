// The card's backend beside the CPU's, with the bundled model: the CPU machine runs the card's
// steps, so that all that the two say of a text has to be the same.
#include <gtest/gtest.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/mask_embedding.h"
#include "runtime/host_runner.h"

#include "engine/gpu.h"

namespace tessera {
namespace {

constexpr uint32_t kContext = 400;

std::unique_ptr<CpuWeights> packed() {
    static const Checkpoint checkpoint = open_checkpoint(TESSERA_MODEL);
    const std::filesystem::path folder = std::filesystem::path(TESSERA_MODEL) / "dflash";
    static const Checkpoint files = open_checkpoint(folder);
    const Shape shape = parse_shape(checkpoint.config, "bundled");
    const PackOptions options{
        .ranks = 1, .threads = 2, .progress = {}, .drop = {}, .fp8 = Fp8::keep};
    auto all = std::make_unique<CpuWeights>();
    all->target = pack_weights(bind(checkpoint, shape), options);
    const MappedFile mask(folder / "mask_embedding.pt");
    const DrafterWeights drafter =
        bind_drafter(files, parse_drafter_shape(files.config, shape, "bundled drafter"),
                     parse_mask_embedding(mask.bytes(), "mask_embedding.pt"));
    all->drafter = std::make_unique<PackedWeights>(pack_drafter(drafter, all->target, options));
    return all;
}

CpuOptions options() {
    CpuOptions o;
    o.workers = 2;
    o.context = kContext;
    o.pin = false;
    return o;
}

struct Beside {
    const std::unique_ptr<CpuWeights> weights = packed();
    CpuMachine machine{weights->target, options(), weights->drafter.get()};
    const std::unique_ptr<Backend> gpu =
        make_gpu_backend(std::make_unique<test::HostRunner>(machine), weights->target.shape,
                         &*weights->drafter->drafter, kContext);
    const std::unique_ptr<Backend> cpu = make_cpu_backend(packed(), options());
};

std::vector<Token> tokens_of(uint32_t count, uint64_t seed) {
    std::vector<Token> tokens;
    for (uint32_t i = 0; i < count; ++i)
        tokens.push_back(static_cast<Token>((i * 7919 + seed * 104729) % 4096));
    return tokens;
}

void expect_same(std::span<const float> a, std::span<const float> b, const char* what) {
    EXPECT_TRUE(std::ranges::equal(a, b)) << what;
}

TEST(GpuBackend, SaysOfATextWhatTheCpusSays) {
    const Beside b;
    EXPECT_TRUE(b.gpu->has_drafter());
    EXPECT_EQ(b.gpu->draft_window(), b.cpu->draft_window());
    EXPECT_EQ(b.gpu->draft_block(), b.cpu->draft_block());
    EXPECT_EQ(b.gpu->draft_bytes(), b.cpu->draft_bytes());
    const std::unique_ptr<Text> gpu[] = {b.gpu->begin(true), b.gpu->begin(false)};
    const std::unique_ptr<Text> cpu[] = {b.cpu->begin(true), b.cpu->begin(false)};
    EXPECT_TRUE(gpu[0]->drafts());
    EXPECT_FALSE(gpu[1]->drafts());
    const std::vector<Token> prompt = tokens_of(50, 1), other = tokens_of(3, 2);
    const auto read = [&](std::span<const Token> first, std::span<const Token> second) {
        std::vector<Backend::Reading> on_gpu, on_cpu;
        for (const auto& [text, tokens] : {std::pair(0, first), std::pair(1, second)}) {
            if (tokens.empty()) continue;
            on_gpu.push_back({gpu[text].get(), tokens});
            on_cpu.push_back({cpu[text].get(), tokens});
        }
        b.gpu->read(on_gpu, 0);
        b.cpu->read(on_cpu, 0);
        for (uint32_t row = 0; row < first.size() + second.size(); ++row)
            expect_same(b.gpu->logits(row), b.cpu->logits(row), "logits");
    };
    read(prompt, other);
    gpu[0]->mark();
    cpu[0]->mark();
    for (uint32_t turn = 0; turn < 30; ++turn) {
        b.gpu->catch_up(*gpu[0]);
        b.cpu->catch_up(*cpu[0]);
        b.gpu->draft(*gpu[0], turn);
        b.cpu->draft(*cpu[0], turn);
        for (uint32_t slot = 1; slot < b.gpu->draft_block(); ++slot)
            expect_same(b.gpu->draft_logits(slot), b.cpu->draft_logits(slot), "drafted");
        // Eight rows, of which some stand: one step of either, which reads the same bytes.
        const std::vector<Token> block = tokens_of(turn % 3 == 0 ? 5 : 8, turn + 3);
        read(block, turn % 3 == 0 ? std::span(other) : std::span<const Token>());
        EXPECT_EQ(b.gpu->experts(), b.cpu->experts());
        EXPECT_EQ(b.gpu->bytes(), b.cpu->bytes());
        const uint32_t length = gpu[0]->length() - turn % 5;
        EXPECT_EQ(gpu[0]->rewind(length), length);
        EXPECT_EQ(cpu[0]->rewind(length), length);
    }
    EXPECT_EQ(gpu[0]->rewind(60), cpu[0]->rewind(60));
    EXPECT_EQ(gpu[0]->length(), 50u) << "the mark behind the prompt";
    read(tokens_of(20, 9), {});
}

// Weights are read again for every eight rows.
TEST(GpuBackend, APromptIsReadInSeveralSteps) {
    const Beside b;
    const std::unique_ptr<Text> gpu = b.gpu->begin(false), one = b.gpu->begin(false);
    const std::vector<Token> prompt = tokens_of(64, 1);
    const Backend::Reading whole{gpu.get(), prompt};
    b.gpu->read(std::span(&whole, 1), 63);
    const double bytes = b.gpu->bytes(), experts = b.gpu->experts();
    double sum = 0;
    for (uint32_t at = 0; at < 64; at += 8) {
        const Backend::Reading piece{one.get(), std::span(prompt).subspan(at, 8)};
        b.gpu->read(std::span(&piece, 1), 0);
        sum += b.gpu->experts();
    }
    EXPECT_NEAR(experts, sum / 8, 1e-9);
    EXPECT_GT(bytes, 7.5 * b.gpu->bytes());
    EXPECT_LT(bytes, 8.5 * b.gpu->bytes());
}

}  // namespace
}  // namespace tessera
