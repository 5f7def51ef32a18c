#include "server/http.h"

#include <condition_variable>
#include <mutex>
#include <thread>
#include <unordered_map>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>

#include "base/error.h"
#include "base/log.h"
#include "server/connection.h"

namespace tessera {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using ErrorCode = boost::system::error_code;

namespace {

// Handlers at once: parsing 16 MiB takes a while, and others are waiting.
constexpr size_t kHandlerThreads = 4;
// Where the system has no more sockets to give, wait for some to close.
constexpr auto kAcceptPause = std::chrono::milliseconds(50);
// Above the limit so many more are told so; beyond them sockets are closed without a word.
constexpr uint32_t kTurnedAwayMax = 64;

}  // namespace

struct HttpServer::Impl : ConnectionHost {
    Impl(const HttpLimits& with, HttpHandler& by)
        : allowed(with), answers(by), acceptor(io), pause(io) {}

    const HttpLimits& limits() const override { return allowed; }
    HttpHandler& handler() override { return answers; }
    bool draining() const override { return drains; }

    void handle(std::shared_ptr<Exchange> exchange) override {
        asio::post(pool, [this, exchange = std::move(exchange)] {
            if (!exchange->gone()) answers.handle(exchange);
        });
    }

    bool take_body(uint64_t bytes) override {
        if (bytes > allowed.bodies_bytes_max - bodies_bytes) return false;
        bodies_bytes += bytes;
        return true;
    }
    void give_body(uint64_t bytes) override { bodies_bytes -= bytes; }

    void closed(Connection& connection) override {
        open.erase(&connection);
        const std::scoped_lock lock(mutex);
        count = static_cast<uint32_t>(open.size());
        changed.notify_all();
    }

    void accept() {
        acceptor.async_accept([this](ErrorCode error, tcp::socket socket) {
            if (!acceptor.is_open()) return;
            if (error) {
                pause.expires_after(kAcceptPause);
                pause.async_wait([this](ErrorCode) {
                    if (acceptor.is_open()) accept();
                });
                return;
            }
            welcome(std::move(socket));
            accept();
        });
    }

    void welcome(tcp::socket socket) {
        if (open.size() >= allowed.connections_max + kTurnedAwayMax) return;
        const bool turned_away = open.size() >= allowed.connections_max;
        const auto connection = std::make_shared<Connection>(std::move(socket), *this);
        open.emplace(connection.get(), connection);
        {
            const std::scoped_lock lock(mutex);
            count = static_cast<uint32_t>(open.size());
        }
        connection->start(turned_away);
    }

    // A copy: closing a connection may take it out of the map.
    std::vector<std::shared_ptr<Connection>> all_open() const {
        std::vector<std::shared_ptr<Connection>> all;
        for (const auto& [key, connection] : open) all.push_back(connection);
        return all;
    }

    const HttpLimits allowed;
    HttpHandler& answers;
    asio::io_context io{1};
    asio::thread_pool pool{kHandlerThreads};
    tcp::acceptor acceptor;
    asio::steady_timer pause;
    std::thread sockets;

    // On the sockets' thread.
    std::unordered_map<Connection*, std::shared_ptr<Connection>> open;
    uint64_t bodies_bytes = 0;
    bool drains = false;

    mutable std::mutex mutex;
    std::condition_variable changed;
    uint32_t count = 0;
};

HttpServer::HttpServer(const HttpLimits& limits, HttpHandler& handler)
    : impl_(std::make_unique<Impl>(limits, handler)) {}

HttpServer::~HttpServer() {
    stop();
}

uint16_t HttpServer::listen(const std::string& host, uint16_t port) {
    ErrorCode error;
    const auto check = [&] {
        if (error) fail("cannot listen on {}, port {}: {}", host, port, error.message());
    };
    const auto address = asio::ip::make_address(host == "localhost" ? "127.0.0.1" : host, error);
    check();
    const tcp::endpoint endpoint(address, port);
    tcp::acceptor& acceptor = impl_->acceptor;
    acceptor.open(endpoint.protocol(), error);
    check();
    acceptor.set_option(asio::socket_base::reuse_address(true), error);
    check();
    acceptor.bind(endpoint, error);
    check();
    acceptor.listen(asio::socket_base::max_listen_connections, error);
    check();
    return acceptor.local_endpoint().port();
}

void HttpServer::start() {
    impl_->accept();
    impl_->sockets = std::thread([this] {
        const auto work = asio::make_work_guard(impl_->io);
        impl_->io.run();
    });
}

void HttpServer::drain() {
    asio::post(impl_->io, [this] {
        impl_->drains = true;
        ErrorCode ignored;
        impl_->acceptor.close(ignored);
        for (const auto& connection : impl_->all_open()) connection->close_idle();
    });
}

bool HttpServer::wait_closed(double seconds) {
    std::unique_lock lock(impl_->mutex);
    return impl_->changed.wait_for(lock, std::chrono::duration<double>(seconds),
                                   [&] { return impl_->count == 0; });
}

void HttpServer::stop() {
    if (!impl_->sockets.joinable()) return;
    drain();
    asio::post(impl_->io, [this] {
        for (const auto& connection : impl_->all_open()) connection->close();
    });
    constexpr double kCloseSeconds = 5;
    if (!wait_closed(kCloseSeconds)) spdlog::warn("some connections did not close in time");
    impl_->pool.join();
    impl_->io.stop();
    impl_->sockets.join();
}

uint32_t HttpServer::connections() const {
    const std::scoped_lock lock(impl_->mutex);
    return impl_->count;
}

}  // namespace tessera
