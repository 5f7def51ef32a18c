// The fields of a request's JSON, read strictly: a value of the wrong type or out of range is a
// problem that names the field. Absent and null are the same, and fine.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/problem.h"
#include "tessera/model.h"

namespace tessera {

// A body: JSON, an object, no deeper than 64 and of at most kJsonValuesMax values.
inline constexpr size_t kJsonValuesMax = 1'000'000;
OrProblem<OrderedJson> parse_body(std::string_view body);

class Fields {
  public:
    // `object` is one and outlives this. `path` stands before the names in problems.
    explicit Fields(const OrderedJson& object, std::string path = "")
        : object_(object), path_(std::move(path)) {}

    // Each is none where the field is absent, null, or a problem.
    std::optional<double> number(std::string_view name, double low, double high);
    std::optional<int64_t> integer(std::string_view name, int64_t low, int64_t high);
    std::optional<bool> boolean(std::string_view name);
    std::optional<std::string> text(std::string_view name);
    const OrderedJson* object(std::string_view name);
    const OrderedJson* list(std::string_view name);
    const OrderedJson* any(std::string_view name) const;

    // A problem with `name`, unless there was one before. `status` 501: not supported.
    void refuse(std::string_view name, std::string_view what, uint32_t status = 400);
    // One that was found further in.
    void refuse(ApiProblem problem);

    const std::optional<ApiProblem>& problem() const { return problem_; }
    std::string path(std::string_view name) const;

  private:
    const OrderedJson& object_;
    std::string path_;
    std::optional<ApiProblem> problem_;
};

// What a value is, for messages: "a string", "-3", "a list".
std::string described(const OrderedJson& value);

}  // namespace tessera
