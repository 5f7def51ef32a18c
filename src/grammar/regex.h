// Patterns of JSON Schema (a subset of ECMAScript's), as pieces of a program.
#pragma once

#include <string_view>

#include "grammar/builder.h"

namespace tessera::grammar {

// A place from which a text that `pattern` matches leads to `next`: characters spelt as `spelling`
// says, without quotes. As JSON Schema has it, what is not anchored with ^ and $ may have anything
// before and behind. Understands characters and their escapes, classes, ., groups, |, and the
// quantifiers * + ? {n} {n,} {n,m}, greedy or lazy. Throws Error naming what else it found and
// where.
Place pattern(Builder& builder, std::string_view pattern, Builder::Spelling spelling, Place next);

}  // namespace tessera::grammar
