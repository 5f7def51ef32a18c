// The side of an Exchange that its connection sees: bytes to send, and whether more will come.
#pragma once

#include <mutex>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/steady_timer.hpp>

#include "server/http.h"

namespace tessera {

// The status line and headers of a reply, ready to send. `length`: of the body; none: chunked.
std::string http_head(const HttpReply& reply, std::string_view request_id,
                      std::optional<uint64_t> length, bool chunked, bool keep_alive);

class OpenExchange : public Exchange, public std::enable_shared_from_this<OpenExchange> {
  public:
    // `executor` is the sockets' thread. HTTP/1.0 clients get streams without chunks.
    OpenExchange(HttpRequest request, boost::asio::any_io_executor executor,
                 const HttpLimits& limits, bool keep_alive, bool chunks);

    HttpRequest& request() override { return request_; }
    void reply(HttpReply whole) override;
    void begin(HttpReply head, std::string ping) override;
    bool write(std::string_view piece) override;
    void end() override;
    bool gone() const override { return gone_.load(); }
    void on_gone(std::function<void()> call) override;

    // ---- for the connection, on the sockets' thread

    struct Batch {
        std::string bytes;
        bool over = false;  // nothing comes after these
        bool cut = false;   // nor will the reply become whole
    };
    // What waits to be sent; takes it.
    Batch take();
    // Adds the ping, if the reply is a stream.
    void ping();
    // The client has left, or is cut off.
    void leave();

    boost::asio::steady_timer& wake() { return wake_; }
    uint32_t status() const { return status_; }
    bool keep_alive() const { return keep_alive_; }

  private:
    void append(std::string_view piece);  // holds mutex_
    void notify();

    HttpRequest request_;
    const uint64_t unread_bytes_max_;
    const bool chunks_;
    bool keep_alive_;
    boost::asio::steady_timer wake_;
    std::atomic<bool> gone_ = false;
    std::atomic<bool> notified_ = false;
    std::atomic<uint32_t> status_ = 0;

    std::mutex mutex_;
    std::string pending_;
    std::string ping_;
    bool begun_ = false, streaming_ = false, over_ = false, cut_ = false;
    std::function<void()> call_;
};

}  // namespace tessera
