// A team of threads that computes one step: work is claimed, never assigned.
//
// A step is a sequence of stages; a stage is done when all its items are. Each thread begins with
// its own share of the items (what it read last step is warm in its cache) and then helps the
// others. So nobody waits for a thread that the kernel has not woken yet or has descheduled between
// two items, which a barrier would: with barriers one busy neighbour makes each of some fifty waits a
// step a scheduling quantum long. A thread that comes late finds finished stages and runs past.
//
// Waiting spins shortly, then yields; between steps it does chores as they come, spins shortly, then
// sleeps. Where there were chores it watches for more, past the draws up to the next step: Python's lock
// leaves that core idle anyway. Who is still at a chore when a step begins comes late.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "chores.h"
#include "wait.h"

namespace penstock {

class Team {
 public:
  Team(int size, std::shared_ptr<Chores> chores)
      : size_(size), shares_(new Counter[size]), chores_(std::move(chores)) {
    if (chores_ && size > 1) chores_->attach([this] { wake(); });
    for (int rank = 1; rank < size; rank++) threads_.emplace_back([this, rank] { serve(rank); });
  }

  ~Team() {
    if (chores_) chores_->attach(nullptr);
    stopping_.store(true);
    wake();
    for (auto& thread : threads_) thread.join();
  }

  int size() const { return size_; }

  // One thread's place in a step. All threads go through the same stages in the same order.
  class Member {
   public:
    Member(Team& team, int rank, uint64_t stage) : rank(rank), team_(team), stage_(stage) {}

    // Run body(item) for items [0, count), shared among the team; returns when all are done.
    template <typename Body>
    void stage(int count, Body&& body) {
      stage_++;
      if (count == 0) return;
      uint64_t finished = 0;
      for (int turn = 0; turn < team_.size_; turn++) {
        int share = (rank + turn) % team_.size_;
        int begin = int(int64_t(count) * share / team_.size_);
        int end = int(int64_t(count) * (share + 1) / team_.size_);
        for (int item; (item = claim(team_.shares_[share], begin, end)) >= 0; finished++) body(item);
      }
      if (finished) add(finished);
      await(count);
    }

    uint64_t last() const { return stage_; }
    const int rank;

   private:
    // A counter says which stage it counts for, in the upper bits. It only ever grows.
    static constexpr int kTagShift = 20;
    static constexpr uint64_t kCountMask = (uint64_t(1) << kTagShift) - 1;

    template <typename Counter>
    int claim(Counter& counter, int begin, int end) {
      if (begin == end) return -1;
      uint64_t seen = counter.value.load(std::memory_order_relaxed);
      while (true) {
        uint64_t tag = seen >> kTagShift;
        int item = tag < stage_ ? begin : int(seen & kCountMask);
        if (tag > stage_ || item >= end) return -1;
        uint64_t taken = stage_ << kTagShift | uint64_t(item + 1);
        if (counter.value.compare_exchange_weak(seen, taken, std::memory_order_acq_rel)) return item;
      }
    }

    void add(uint64_t finished) {
      auto& done = team_.done_.value;
      uint64_t seen = done.load(std::memory_order_relaxed), next;
      do {
        uint64_t before = seen >> kTagShift == stage_ ? seen & kCountMask : 0;
        next = stage_ << kTagShift | (before + finished);
      } while (!done.compare_exchange_weak(seen, next, std::memory_order_acq_rel));
    }

    void await(int count) {
      const uint64_t complete = stage_ << kTagShift | uint64_t(count);
      for (Patience patience; team_.done_.value.load(std::memory_order_acquire) < complete;)
        patience.wait();
    }

    Team& team_;
    uint64_t stage_;
  };

  // Run step(member) on the caller and on whichever threads come in time. A stage must have fewer
  // than 2^20 items.
  template <typename Step>
  void run(Step&& step) {
    call_ = [](void* context, Member& member) { (*static_cast<Step*>(context))(member); };
    context_ = &step;
    inside_.store(kStepOpen, std::memory_order_release);
    wake();
    Member caller(*this, 0, first_stage_);
    step(caller);
    // Nobody enters any more; who is inside finds every stage done and leaves.
    inside_.fetch_sub(kStepOpen, std::memory_order_acq_rel);
    for (Patience patience; inside_.load(std::memory_order_acquire) != 0;) patience.wait();
    first_stage_ = caller.last();
  }

 private:
  struct alignas(64) Counter {
    std::atomic<uint64_t> value{0};
  };
  static constexpr int kStepOpen = 1 << 16;
  // From a step's end to the draws of a full batch, or from there to the next step.
  static constexpr int kWatchingSpins = 6 * kSpins;
  static constexpr int kYieldSpins = 40;  // that take as long

  void wake() {
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
  }

  // Between steps. `posted` is what Chores had said after the last one.
  void rest(uint32_t seen, uint32_t& posted) {
    int patience = kSpins;
    if (chores_ && chores_->posted() != posted) {
      posted = chores_->posted();
      patience = kWatchingSpins;
    }
    if (chores_) chores_->watch(true);
    for (int spins = 0; epoch_.load(std::memory_order_acquire) == seen && spins < patience; spins++) {
      if (chores_ && chores_->any()) {
        chores_->help();
        spins = 0;
      }
      // Beyond a short while the event loop may want the core: what was drawn is on its way to it.
      if (spins < kSpins) {
        relax();
      } else {
        sched_yield();
        spins += kYieldSpins;
      }
    }
    if (chores_) chores_->watch(false);
  }

  void serve(int rank) {
    uint32_t seen = 0, posted = 0;
    while (true) {
      rest(seen, posted);
      epoch_.wait(seen);
      seen = epoch_.load(std::memory_order_acquire);
      if (stopping_.load()) return;
      if (chores_) chores_->help();
      int inside = inside_.load(std::memory_order_relaxed);
      while (inside >= kStepOpen &&
             !inside_.compare_exchange_weak(inside, inside + 1, std::memory_order_acq_rel)) {
      }
      if (inside < kStepOpen) continue;
      Member member(*this, rank, first_stage_);
      call_(context_, member);
      inside_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  const int size_;
  std::unique_ptr<Counter[]> shares_;
  Counter done_;
  uint64_t first_stage_ = 0;
  void (*call_)(void*, Member&) = nullptr;
  void* context_ = nullptr;
  std::shared_ptr<Chores> chores_;
  std::atomic<int> inside_{0};
  std::atomic<uint32_t> epoch_{0};
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> threads_;  // last: the threads use all of the above
};

}  // namespace penstock
