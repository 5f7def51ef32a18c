#include "server/notify.h"

#include <cstddef>
#include <cstdlib>
#include <cstring>

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "support/temporary_store.h"

namespace tessera {
namespace {

// What a service manager has: a datagram socket, by path or by abstract name ("@…").
class Manager {
  public:
    explicit Manager(const std::string& name) : socket_(socket(AF_UNIX, SOCK_DGRAM, 0)) {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::memcpy(address.sun_path, name.data(), name.size());
        const bool abstract = name[0] == '@';
        if (abstract) address.sun_path[0] = '\0';
        const size_t length = offsetof(sockaddr_un, sun_path) + name.size() + (abstract ? 0 : 1);
        bound_ = bind(socket_, reinterpret_cast<sockaddr*>(&address),
                      static_cast<socklen_t>(length)) == 0;
    }
    ~Manager() { close(socket_); }

    bool bound() const { return bound_; }

    // The next datagram; "nothing" if none comes.
    std::string heard() {
        constexpr int kPatienceMs = 1000;
        pollfd waiting{socket_, POLLIN, 0};
        if (poll(&waiting, 1, kPatienceMs) != 1) return "nothing";
        char bytes[256];
        const ssize_t size = recv(socket_, bytes, sizeof(bytes), 0);
        return {bytes, static_cast<size_t>(size)};
    }

  private:
    int socket_;
    bool bound_ = false;
};

void expect_conversation(const std::string& name) {
    Manager manager(name);
    ASSERT_TRUE(manager.bound());
    const Notifier notifier(name, 3'000'000);
    EXPECT_TRUE(notifier.ready());
    EXPECT_EQ(manager.heard(), "READY=1");
    EXPECT_TRUE(notifier.alive());
    EXPECT_EQ(manager.heard(), "WATCHDOG=1");
    EXPECT_TRUE(notifier.status("loading, 40 %\nSTOPPING=1"));
    EXPECT_EQ(manager.heard(), "STATUS=loading, 40 %");
    EXPECT_TRUE(notifier.stopping());
    EXPECT_EQ(manager.heard(), "STOPPING=1");
    EXPECT_EQ(notifier.alive_every_s(), 1.5);
}

TEST(Notify, SpeaksToASocketInAFolder) {
    const TemporaryStore folder;
    expect_conversation((folder.folder() / "notify").string());
}

TEST(Notify, SpeaksToAnAbstractSocket) {
    expect_conversation("@tessera-notify-test-" + std::to_string(getpid()));
}

TEST(Notify, WithoutAManagerNothingIsSaid) {
    const TemporaryStore folder;
    for (const std::string& name : {std::string(), std::string("@"), std::string("relative"),
                                    std::string(200, '/'), (folder.folder() / "nobody").string()})
        EXPECT_FALSE(Notifier(name).ready()) << name;
}

TEST(Notify, AManagerThatDoesNotReadIsNotWaitedFor) {
    const TemporaryStore folder;
    const std::string name = (folder.folder() / "notify").string();
    Manager manager(name);
    const Notifier notifier(name);
    int sent = 0;
    while (sent < 100'000 && notifier.alive()) ++sent;
    EXPECT_LT(sent, 100'000);  // it said so, and returned
}

TEST(Notify, TheEnvironmentNamesTheManager) {
    const TemporaryStore folder;
    const std::string name = (folder.folder() / "notify").string();
    Manager manager(name);
    setenv("NOTIFY_SOCKET", name.c_str(), 1);
    setenv("WATCHDOG_USEC", "20000000", 1);
    setenv("WATCHDOG_PID", std::to_string(getpid()).c_str(), 1);
    EXPECT_TRUE(Notifier::from_environment().ready());
    EXPECT_EQ(manager.heard(), "READY=1");
    EXPECT_EQ(Notifier::from_environment().alive_every_s(), 10);
    setenv("WATCHDOG_PID", "1", 1);
    EXPECT_EQ(Notifier::from_environment().alive_every_s(), 0) << "meant for another process";
    for (const char* variable : {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})
        unsetenv(variable);
    EXPECT_FALSE(Notifier::from_environment().ready());
}

}  // namespace
}  // namespace tessera
