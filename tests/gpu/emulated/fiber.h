// What a thread of the emulated card runs on: a stack of its own, and the way to others and back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include <boost/context/fiber.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>

namespace emulated {

inline constexpr uint32_t kStackBytes = 64 * 1024;

// Stacks begin in different lines of the host's cache. All at the same place of a page, 32 lanes
// push each other out of it with every turn: three times slower.
class Stacks {
  public:
    Stacks() : shift_(made_++ % 32 * 320) {}

    boost::context::stack_context allocate() {
        boost::context::stack_context stack = all_.allocate();
        stack.sp = static_cast<std::byte*>(stack.sp) - shift_;
        stack.size -= shift_;
        return stack;
    }
    void deallocate(boost::context::stack_context& stack) {
        stack.sp = static_cast<std::byte*>(stack.sp) + shift_;
        stack.size += shift_;
        all_.deallocate(stack);
    }

  private:
    inline static size_t made_ = 0;
    boost::context::protected_fixedsize_stack all_{kStackBytes};
    size_t shift_;
};

// Runs one thread after another. Kept, stack and all, from launch to launch.
class Fiber {
  public:
    explicit Fiber(const std::function<void()>*& body)
        : inside_(std::allocator_arg, Stacks(),
                  [this, &body](boost::context::fiber&&) -> boost::context::fiber {
                      while (true) {
                          (*body)();
                          over_ = true;
                          leave();
                      }
                  }) {}

    // From the scheduler and back, or past it to another.
    void enter() { to(inside_, hub()); }
    void leave() { to(hub(), inside_); }
    void pass_to(Fiber& other) { to(other.inside_, inside_); }

    // Whether the thread is over, since it was asked last.
    bool ended() { return std::exchange(over_, false); }

  private:
    static boost::context::fiber& hub() {
        static auto& one = *new boost::context::fiber;
        return one;
    }
    static void to(boost::context::fiber& next, boost::context::fiber& own) {
        std::move(next).resume_with([&own](boost::context::fiber&& left) {
            own = std::move(left);
            return boost::context::fiber();
        });
    }

    bool over_ = false;
    boost::context::fiber inside_;
};

}  // namespace emulated
