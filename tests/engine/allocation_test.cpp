// Between load and the end of generation nothing is allocated and nothing thrown: counted at
// operator new and at __cxa_throw, which this file replaces for the whole test program.
#include <atomic>
#include <cstdlib>
#include <new>

#include <dlfcn.h>
#include <gtest/gtest.h>

#include "tessera/session.h"

// The address sanitizer has operators of its own and pairs what it sees of them: under it there are
// no such tests.
#ifndef __SANITIZE_ADDRESS__

namespace {

std::atomic<bool> counting = false;
std::atomic<uint64_t> allocations = 0, exceptions = 0;

void* counted(std::size_t bytes, std::size_t alignment) {
    if (counting) ++allocations;
    void* const made =
        alignment > alignof(std::max_align_t)
            ? std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment)
            : std::malloc(bytes > 0 ? bytes : 1);
    if (made == nullptr) throw std::bad_alloc();
    return made;
}

}  // namespace

extern "C" void __cxa_throw(void* thrown, void* type, void (*destroy)(void*)) {
    using Throw = void (*)(void*, void*, void (*)(void*));
    static const auto real = reinterpret_cast<Throw>(dlsym(RTLD_NEXT, "__cxa_throw"));
    if (counting) ++exceptions;
    real(thrown, type, destroy);
    __builtin_unreachable();
}

// Not inlined: g++ 12 would see one half of a pair and take it for a mismatch.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
    return counted(bytes, 0);
}
[[gnu::noinline]] void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
    return counted(bytes, 0);
}
[[gnu::noinline]] void* operator new(std::size_t bytes, std::align_val_t alignment) {
    return counted(bytes, static_cast<std::size_t>(alignment));
}
[[gnu::noinline]] void operator delete(void* made) noexcept {
    std::free(made);
}
[[gnu::noinline]] void operator delete(void* made, std::size_t) noexcept {
    std::free(made);
}
[[gnu::noinline]] void operator delete(void* made, std::align_val_t) noexcept {
    std::free(made);
}
[[gnu::noinline]] void operator delete(void* made, std::size_t, std::align_val_t) noexcept {
    std::free(made);
}

namespace tessera {
namespace {

struct Counted {
    Counted() {
        allocations = exceptions = 0;
        counting = true;
    }
    ~Counted() { counting = false; }
};

TEST(Allocation, TheCounterCounts) {
    const Counted counted;
    int* volatile made = new int(1);  // volatile: a compiler may leave a pair out
    delete made;
    EXPECT_EQ(allocations, 1u);
    try {
        throw 1;
    } catch (int) {
    }
    EXPECT_EQ(exceptions, 1u);
}

TEST(Allocation, NoneBetweenLoadAndTheEndOfGeneration) {
    const Model model = Model::load(TESSERA_MODEL);
    for (const float temperature : {0.0f, 1.0f}) {
        Sampling sampling;
        sampling.temperature = temperature;
        sampling.top_k = 40;
        sampling.top_p = 0.9f;
        const std::vector<Token> prompt = model.encode("def add(a, b):\n    return a");
        Session session(model, sampling);
        const Counted counted;
        session.append(prompt);
        for (int i = 0; i < 24; ++i) session.next();
        session.append(prompt);  // a second turn
        for (int i = 0; i < 8; ++i) session.next();
        EXPECT_EQ(allocations, 0u) << "at temperature " << temperature;
        EXPECT_EQ(exceptions, 0u) << "at temperature " << temperature;
    }
}

// Over the first chunk of keys and far over the window.
TEST(Allocation, NoneInALongText) {
    const Model model = Model::load(TESSERA_MODEL);
    const std::vector<Token> prompt(700, model.encode("a").front());
    Session session(model, {});
    const Counted counted;
    session.append(prompt);
    for (int i = 0; i < 8; ++i) session.next();
    EXPECT_EQ(allocations, 0u);
    EXPECT_EQ(exceptions, 0u);
}

}  // namespace
}  // namespace tessera

#endif
