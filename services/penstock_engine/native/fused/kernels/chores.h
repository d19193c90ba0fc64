// Who does what followers leave to do. Between two steps Python plans and tells, and the team's threads
// idle: for as long as they watch, followers hear of their tokens there and find their masks. What is left
// when a step begins is done by threads that come late to it, or by who needs it.
//
// A follower is somebody's own at any time, so its fields need no lock. Idle, it is the step thread's;
// queued, it is nobody's; running, it is that of the thread that took it from the queue. It changes hands
// under the lock or by a release of `chore` that the next owner acquires. Python's lock may be held by who
// posts, hears and recalls, since none of these waits for a chore; await() does, and who is at a chore may
// need that lock (to cut forced bytes into tokens).
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>

#include <sched.h>

#include "follow.h"
#include "wait.h"

namespace penstock {

constexpr int64_t kWorthWakingNs = 100'000;  // what waking a thread takes, and what else that delays

class Chores {
 public:
  explicit Chores(const PenstockGrammar& grammar) : grammar(grammar) {}

  const PenstockGrammar grammar;

  bool idle(const Follower& follower) const {
    return follower.chore.load(std::memory_order_acquire) == kIdle;
  }

  bool any() const { return waiting_.load(std::memory_order_relaxed) != 0; }

  // Grows with each post: who saw it grow may expect more.
  uint32_t posted() const { return posted_.load(std::memory_order_relaxed); }

  // Whether a thread would begin at once on what is posted now.
  bool watched() const { return watching_.load(std::memory_order_relaxed) > 0; }
  void watch(bool begins) { watching_.fetch_add(begins ? 1 : -1, std::memory_order_relaxed); }

  // `wake` makes threads with time call help(); null once they are gone.
  void attach(std::function<void()> wake) {
    Hold hold(lock_);
    wake_ = std::move(wake);
  }

  // Its follower is idle: nobody but the caller knows of it.
  void post(Follower& follower) {
    Hold hold(lock_);
    enqueue(follower);
    posted_.fetch_add(1, std::memory_order_relaxed);
  }

  // Have it begin now.
  void wake() {
    Hold hold(lock_);
    if (wake_ && !queue_.empty()) wake_();
  }

  // Until nothing is left. All hear of their tokens before masks are found: that is awaited sooner.
  void help() {
    while (Follower* next = claim()) {
      const bool heard = next->unheard();
      if (heard) next->hear();
      else next->find();
      if (heard && next->expected_ns() > 0) {
        Hold hold(lock_);
        enqueue(*next);
      } else {
        next->chore.store(kIdle, std::memory_order_release);
      }
    }
  }

  // Make a follower idle without waiting; false if somebody is at it.
  bool recall(Follower& follower) {
    if (idle(follower)) return true;
    Hold hold(lock_);
    auto found = std::find(queue_.begin(), queue_.end(), &follower);
    if (found == queue_.end()) return idle(follower);
    queue_.erase(found);
    waiting_.store(int(queue_.size()), std::memory_order_relaxed);
    follower.chore.store(kIdle, std::memory_order_relaxed);
    return true;
  }

  // The same, waiting for who is at it, and so not to be called with Python's lock held.
  void await(Follower& follower) {
    for (Patience patience; !recall(follower);) patience.wait();
  }

 private:
  enum { kIdle, kQueued, kRunning };

  void enqueue(Follower& follower) {
    follower.chore.store(kQueued, std::memory_order_relaxed);
    queue_.push_back(&follower);
    waiting_.store(int(queue_.size()), std::memory_order_relaxed);
  }

  Follower* claim() {
    if (!any()) return nullptr;
    Hold hold(lock_);
    if (queue_.empty()) return nullptr;
    Follower* next = queue_.front();
    queue_.pop_front();
    waiting_.store(int(queue_.size()), std::memory_order_relaxed);
    next->chore.store(kRunning, std::memory_order_relaxed);
    return next;
  }

  SpinLock lock_;
  std::deque<Follower*> queue_;
  std::atomic<int> waiting_{0}, watching_{0};
  std::atomic<uint32_t> posted_{0};
  std::function<void()> wake_;
};

}  // namespace penstock
