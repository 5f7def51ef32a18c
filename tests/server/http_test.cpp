// The sockets' side without any model: replies from other threads, clients that leave, do not read
// or send ahead, and the end. What an API makes of it is the Python tests' business.
#include "server/http.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

namespace tessera {
namespace {

// "/whole" echoes the body; "/stream" sends it again and again from a thread of its own until
// nobody is there, "/few" three times.
class Echo : public HttpHandler {
  public:
    ~Echo() override {
        for (std::thread& thread : threads_) thread.join();
    }
    std::optional<HttpReply> admit(HttpRequest& head) override {
        if (head.path == "/refused") return HttpReply{401, "no"};
        return std::nullopt;
    }
    void handle(std::shared_ptr<Exchange> exchange) override {
        if (exchange->request().path == "/whole")
            return exchange->reply({200, exchange->request().body});
        const std::scoped_lock lock(mutex_);
        threads_.emplace_back([this, exchange]() mutable {
            const bool few = exchange->request().path == "/few";
            exchange->on_gone([this] { ++gone; });
            exchange->begin({200, ""}, "ping");
            for (int i = 0; few ? i < 3 : true; ++i)
                if (!exchange->write(exchange->request().body)) break;
            exchange->end();
            exchange.reset();  // none outlives its server
            ++ended;
        });
    }
    HttpReply problem(uint32_t status, std::string_view message, const HttpRequest&) override {
        return {status, std::string(message)};
    }
    void finished(const HttpRequest&, const HttpOutcome& outcome) override {
        if (!outcome.whole) ++cut;
    }

    std::atomic<int> gone = 0, ended = 0, cut = 0;

  private:
    std::mutex mutex_;
    std::vector<std::thread> threads_;
};

class Client {
  public:
    explicit Client(uint16_t port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(port);
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        EXPECT_EQ(::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    }
    ~Client() { ::close(socket_); }

    void send(const std::string& path, const std::string& body, const std::string& more = "") {
        const std::string text = "POST " + path + " HTTP/1.1\r\n" + more +
                                 "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" +
                                 body;
        EXPECT_EQ(::send(socket_, text.data(), text.size(), MSG_NOSIGNAL),
                  static_cast<ssize_t>(text.size()));
    }
    // Reads until the end, or until `count` bytes are there.
    std::string read(size_t count = SIZE_MAX) {
        std::string all;
        char piece[4096];
        while (all.size() < count) {
            const ssize_t got = ::recv(socket_, piece, sizeof piece, 0);
            if (got <= 0) break;
            all.append(piece, static_cast<size_t>(got));
        }
        return all;
    }

  private:
    int socket_;
};

void wait_for(const std::atomic<int>& count, int wanted) {
    for (int i = 0; i < 6000 && count < wanted; ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    EXPECT_EQ(count, wanted);
}

TEST(Http, RepliesWholeOrInPieces) {
    Echo echo;
    HttpServer server({}, echo);
    const uint16_t port = server.listen("127.0.0.1", 0);
    server.start();
    std::vector<std::thread> clients;
    for (int i = 0; i < 4; ++i) {
        clients.emplace_back([&, i] {
            for (int round = 0; round < 10; ++round) {
                const std::string body(static_cast<size_t>(1 + 100 * i),
                                       static_cast<char>('a' + i));
                Client client(port);
                client.send("/whole", body);  // and ahead of its answer
                client.send("/few", body, "Connection: close\r\n");
                const std::string all = client.read();
                EXPECT_EQ(std::ranges::count(all, static_cast<char>('a' + i)) >=
                              static_cast<ptrdiff_t>(4 * body.size()),
                          true);
                EXPECT_TRUE(all.ends_with("\r\n0\r\n\r\n"));
            }
        });
    }
    for (std::thread& client : clients) client.join();
    Client refused(port);
    refused.send("/refused", "body");
    EXPECT_TRUE(refused.read().starts_with("HTTP/1.1 401 "));
    server.drain();
    EXPECT_TRUE(server.wait_closed(60));
    EXPECT_EQ(echo.cut, 0);
}

TEST(Http, WhoLeavesOrDoesNotReadIsGone) {
    Echo echo;
    HttpServer server({.unread_bytes_max = 16'384}, echo);
    const uint16_t port = server.listen("127.0.0.1", 0);
    server.start();
    {
        Client leaves(port);
        leaves.send("/stream", std::string(100, 'x'));
        leaves.read(100);
    }
    wait_for(echo.ended, 1);
    Client sleeps(port);
    sleeps.send("/stream", std::string(1000, 'x'));
    wait_for(echo.ended, 2);
    wait_for(echo.cut, 2);
}

TEST(Http, StoppingEndsWhatRuns) {
    Echo echo;
    {
        HttpServer server({}, echo);
        const uint16_t port = server.listen("127.0.0.1", 0);
        server.start();
        Client client(port), idle(port);
        client.send("/stream", "x");
        client.read(100);
        server.stop();
        EXPECT_EQ(idle.read(), "");
        wait_for(echo.ended, 1);
    }
}

}  // namespace
}  // namespace tessera
