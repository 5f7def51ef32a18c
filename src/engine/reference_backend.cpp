#include "engine/backend.h"

namespace tessera {
namespace {

class ReferenceBackend : public Backend {
  public:
    ReferenceBackend(Checkpoint checkpoint, Weights weights)
        : checkpoint_(std::move(checkpoint)),
          weights_(std::move(weights)),
          reference_(weights_, Rounding::bf16) {}

    std::unique_ptr<Text> begin(bool) override { return std::make_unique<Slow>(weights_.shape); }

    void read(std::span<const Reading> readings, uint32_t) override {
        hidden_.clear();
        for (const Reading& reading : readings) {
            auto& slow = static_cast<Slow&>(*reading.text);
            const std::vector<float> rows = reference_.forward(slow.cache, reading.tokens);
            hidden_.insert(hidden_.end(), rows.begin(), rows.end());
        }
    }

    std::span<const float> logits(uint32_t row) override {
        const size_t width = weights_.shape.hidden;
        logits_ = reference_.logits(std::span(hidden_).subspan(row * width, width));
        return logits_;
    }

  private:
    class Slow : public Text {
      public:
        explicit Slow(const Shape& shape) : shape_(shape) {}

        uint32_t length() const override { return cache.length; }

        uint32_t rewind(uint32_t length) override {
            cache.length = length;
            for (uint32_t i = 0; i < cache.keys.size(); ++i) {
                const AttentionShape& a = shape_.attention(i);
                cache.keys[i].resize(size_t{length} * a.k_rows());
                cache.values[i].resize(size_t{length} * a.v_rows());
            }
            return length;
        }

        Reference::Cache cache;

      private:
        const Shape& shape_;
    };

    Checkpoint checkpoint_;  // keeps the mapping alive
    Weights weights_;
    Reference reference_;
    std::vector<float> hidden_, logits_;  // hidden_: of the last read, row by row
};

}  // namespace

std::unique_ptr<Backend> make_reference_backend(Checkpoint checkpoint, Weights weights) {
    return std::make_unique<ReferenceBackend>(std::move(checkpoint), std::move(weights));
}

}  // namespace tessera
