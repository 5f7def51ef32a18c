// What a Model holds.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <optional>

#include "decode/controller.h"
#include "decode/costs.h"
#include "model/generation.h"
#include "tessera/model.h"
#include "text/tokenizer.h"

#include "engine/backend.h"

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

    std::optional<Experience>& experience_at(float temperature) const {
        return experience[temperature == 0       ? 0
                          : temperature <= 0.85f ? 1
                          : temperature <= 1.15f ? 2
                                                 : 3];
    }
};

}  // namespace tessera
