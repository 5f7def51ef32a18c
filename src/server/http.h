// HTTP/1.1 for strangers: sockets, deadlines, limits and back-pressure. Has not heard of models or
// of any API: what a path means, and what an error looks like, its Handler says.
//
// One thread owns every socket; handlers run on a few others, so that a large body of one client
// does not hold up the streams of the rest. A reply is given through an Exchange, from any thread.
#pragma once

#include <any>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tessera {

struct HttpLimits {
    uint32_t connections_max = 4096;         // open sockets; more are answered 503 and closed
    uint64_t header_bytes_max = 16'384;      // request line and headers: 431
    uint64_t body_bytes_max = 16'777'216;    // 413
    uint64_t bodies_bytes_max = 1ull << 30;  // of all bodies being read or handled: 503
    uint64_t unread_bytes_max = 1'048'576;   // of a stream that its client does not read: cut off
    double header_s = 10;                    // from the first byte to the end of the headers: 408
    double body_s = 60;                      // from there to the end of the body: 408
    double idle_s = 75;                      // without a request
    double write_s = 30;                     // a client that takes no byte for so long: cut off
    double ping_s = 15;                      // the stream's ping when nothing else was sent
};

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
    std::string method;   // "GET"
    std::string path;     // as sent, without the query
    std::string query;    // as sent, without "?"
    HttpHeaders headers;  // names in lower case
    std::string body;
    std::string id;    // ours, 32 hexadecimal digits; the reply's x-request-id
    std::string peer;  // address and port
    std::chrono::steady_clock::time_point received;  // whole, the body too
    std::any guest;                                  // what the handler's admit() left here

    // Of the first header called `name` (lower case); empty if there is none.
    std::string_view header(std::string_view name) const;
};

struct HttpReply {
    uint32_t status = 200;
    std::string body;
    HttpHeaders headers = {};
    std::string content_type = "application/json";
};

// One request on its way. All methods from any thread; exactly one reply is given.
class Exchange {
  public:
    virtual ~Exchange() = default;

    virtual HttpRequest& request() = 0;

    // The whole reply at once.
    virtual void reply(HttpReply whole) = 0;

    // Or piece by piece: `head` (its body is the first piece), then write() and end(). `ping` is
    // sent whenever nothing else was for ping_s.
    virtual void begin(HttpReply head, std::string ping) = 0;
    // False if the piece will not arrive: the client has left, or was cut off because it does not
    // read.
    virtual bool write(std::string_view piece) = 0;
    virtual void end() = 0;

    // Whether nobody is there to answer any more. Half-closed counts as left: from here the two
    // look the same.
    virtual bool gone() const = 0;
    // Called once, when the client leaves or is cut off before the reply's end; at once if it has.
    // Not after the end.
    virtual void on_gone(std::function<void()> call) = 0;
};

// What came of an exchange, for a log.
struct HttpOutcome {
    uint32_t status = 0;      // 0: gone before there was any
    uint64_t bytes_sent = 0;  // handed to the socket
    bool whole = false;       // the reply reached its end
    double seconds = 0;       // since the headers were there
};

class HttpHandler {
  public:
    virtual ~HttpHandler() = default;

    // From the headers alone, before the body is read, on the sockets' thread: be quick. A reply
    // refuses the request; the connection closes after it if a body is on its way.
    virtual std::optional<HttpReply> admit(HttpRequest& head) = 0;
    // A whole request, on a worker thread. Replies now or later.
    virtual void handle(std::shared_ptr<Exchange> exchange) = 0;
    // How an error that http itself found looks. `request` has what was understood of it.
    virtual HttpReply problem(uint32_t status, std::string_view message,
                              const HttpRequest& request) = 0;
    virtual void finished(const HttpRequest& request, const HttpOutcome& outcome) = 0;
};

class HttpServer {
  public:
    // The handler outlives the server.
    HttpServer(const HttpLimits& limits, HttpHandler& handler);
    ~HttpServer();  // cuts what is open

    // Binds; 0 takes any free port. Returns the port. Throws Error naming address and reason.
    uint16_t listen(const std::string& host, uint16_t port);
    // Starts its threads.
    void start();

    // No new connections; idle ones close, the others after their reply.
    void drain();
    // Waits until no connection is open; false after `seconds`.
    bool wait_closed(double seconds);
    // Closes every socket and ends the threads. Exchanges that are still held are gone.
    void stop();

    uint32_t connections() const;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace tessera
