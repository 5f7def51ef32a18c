// What a Model holds.
#pragma once

#include <array>
#include <list>
#include <memory>
#include <mutex>
#include <optional>

#include "decode/controller.h"
#include "decode/costs.h"
#include "model/generation.h"
#include "tessera/model.h"
#include "text/tokenizer.h"

#include "engine/backend.h"
#include "engine/guide.h"

namespace tessera {

struct Model::Parts {
    Parts(Tokenizer words, Generation defaults, ModelInfo about, std::unique_ptr<Backend> what)
        : tokenizer(std::move(words)),
          generation(std::move(defaults)),
          info(std::move(about)),
          backend(std::move(what)) {}

    Tokenizer tokenizer;
    Generation generation;
    ModelInfo info;
    std::unique_ptr<Backend> backend;
    // Guards the backend, which takes one step at a time, and what its steps cost.
    mutable std::mutex turn;
    mutable Costs costs;
    // By temperature: what the last session of it learnt of drafting.
    mutable std::array<std::optional<Experience>, 4> experience;

    // Of grammars, made when first asked for, and what is known of those that were used last: by
    // Program::source, the latest first. Guarded by `turn`, but for the vocabulary's making.
    mutable std::once_flag vocabulary_once;
    mutable std::shared_ptr<const grammar::Vocabulary> vocabulary;
    mutable std::list<std::shared_ptr<grammar::LocalMasks>> masks;

    std::shared_ptr<const grammar::Vocabulary> vocabulary_of_grammars() const {
        std::call_once(vocabulary_once, [&] {
            vocabulary = grammar_vocabulary(tokenizer, info.end_tokens, info.vocab);
        });
        return vocabulary;
    }

    // Holds `turn`.
    std::shared_ptr<grammar::LocalMasks> masks_of(
        const std::shared_ptr<const grammar::Program>& program) const {
        constexpr size_t kKept = 64;
        for (auto at = masks.begin(); at != masks.end(); ++at) {
            if ((*at)->program().source != program->source) continue;
            masks.splice(masks.begin(), masks, at);
            return masks.front();
        }
        masks.push_front(std::make_shared<grammar::LocalMasks>(program, vocabulary));
        if (masks.size() > kKept) masks.pop_back();
        return masks.front();
    }

    std::optional<Experience>& experience_at(float temperature) const {
        return experience[temperature == 0       ? 0
                          : temperature <= 0.85f ? 1
                          : temperature <= 1.15f ? 2
                                                 : 3];
    }
};

}  // namespace tessera
