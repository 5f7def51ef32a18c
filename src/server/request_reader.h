// From a stranger's bytes to an HTTP request, piece by piece, under limits. Boost.Beast reads the
// grammar; here is what we refuse beyond it. Knows no sockets and no clocks.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "server/http.h"

namespace tessera {

class RequestReader {
  public:
    explicit RequestReader(const HttpLimits& limits);
    ~RequestReader();

    enum class At : uint8_t {
        kHead,     // more bytes are needed for the request line and headers
        kBody,     // the headers are there; more bytes are needed, or none were offered yet
        kEnd,      // the request is whole
        kProblem,  // it will never be one: status() and message() say why
    };
    At at() const { return at_; }

    // Takes what it can from `bytes`, which begin where the last call left off, and returns how
    // many. Stops behind the headers once, then takes the body.
    size_t read(std::string_view bytes);

    // ---- behind the headers

    HttpRequest head() const;  // without body, id and times
    bool keep_alive() const;
    bool chunks() const;  // whether the client understands chunks: HTTP/1.1
    // Bytes of the body: as announced, or the most there can be.
    uint64_t body_bytes_max() const;
    // ---- at the end
    std::string take_body();

    // ---- with a problem: 400, 413, 431 or 505
    uint32_t status() const { return status_; }
    const std::string& message() const { return message_; }

  private:
    struct Beast;
    void refuse(uint32_t status, std::string message);
    void check_head();

    const HttpLimits& limits_;
    std::unique_ptr<Beast> beast_;
    At at_ = At::kHead;
    bool begun_body_ = false;
    uint64_t head_bytes_ = 0;
    uint32_t status_ = 0;
    std::string message_;
};

}  // namespace tessera
