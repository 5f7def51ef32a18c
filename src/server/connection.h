// One client's socket: reads requests, sends replies, keeps the deadlines. Lives on the sockets'
// thread.
#pragma once

#include <memory>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>

#include "server/exchange.h"
#include "server/request_reader.h"

namespace tessera {

// What all connections share, on the sockets' thread.
class Connection;
class ConnectionHost {
  public:
    virtual ~ConnectionHost() = default;
    virtual const HttpLimits& limits() const = 0;
    virtual HttpHandler& handler() = 0;
    // Runs the handler on a worker thread.
    virtual void handle(std::shared_ptr<Exchange> exchange) = 0;
    virtual bool draining() const = 0;
    // Room for a body among all bodies; false if there is none.
    virtual bool take_body(uint64_t bytes) = 0;
    virtual void give_body(uint64_t bytes) = 0;
    virtual void closed(Connection& connection) = 0;
};

class Connection : public std::enable_shared_from_this<Connection> {
  public:
    Connection(boost::asio::ip::tcp::socket socket, ConnectionHost& host);

    // Serves until the end of the connection. `turned_away`: only to say 503.
    void start(bool turned_away);
    // Closes now if no request is on its way.
    void close_idle();
    // Closes now.
    void close();

  private:
    using Socket = boost::asio::ip::tcp::socket;

    boost::asio::awaitable<void> run(bool turned_away);
    boost::asio::awaitable<bool> serve_one();
    boost::asio::awaitable<bool> read_until(RequestReader& reader, RequestReader::At here);
    boost::asio::awaitable<bool> answer(HttpRequest request, uint64_t body_bytes, bool keep_alive,
                                        bool chunks);
    boost::asio::awaitable<void> watch();
    boost::asio::awaitable<void> pump(OpenExchange& exchange, HttpOutcome& outcome);
    boost::asio::awaitable<bool> send(std::string_view bytes, HttpOutcome& outcome);
    boost::asio::awaitable<bool> refuse(HttpRequest& request, HttpReply reply, bool keep_alive);
    boost::asio::awaitable<bool> refuse(HttpRequest& request, uint32_t status,
                                        std::string_view message);
    boost::asio::awaitable<void> linger();

    // The one deadline at a time: what is under way ends with an error when it passes.
    void arm(double seconds);
    void disarm();

    Socket socket_;
    ConnectionHost& host_;
    boost::beast::flat_buffer buffer_;
    boost::asio::steady_timer deadline_;
    uint64_t deadlines_ = 0;  // counts them, so that an old one does nothing
    bool expired_ = false;
    bool idle_ = true;
    std::string peer_;
};

}  // namespace tessera
