// CHECK states a fact that only a bug can break; a broken one aborts and prints the fact. It stays
// on in release builds: each costs a compare, and none stands in an inner loop.
#pragma once

#include <cstdio>
#include <cstdlib>

#define CHECK(fact)                                                                      \
    do {                                                                                 \
        if (!(fact)) [[unlikely]] {                                                      \
            std::fprintf(stderr, "%s:%d: broken fact: %s\n", __FILE__, __LINE__, #fact); \
            std::abort();                                                                \
        }                                                                                \
    } while (false)
