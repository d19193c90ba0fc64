// Waiting for another thread that is expected soon: spin shortly, then let others have the core.
#pragma once
#include <atomic>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <sched.h>

namespace penstock {

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

constexpr int kSpins = 2000;  // some tens of microseconds: a stage's length

class Patience {
 public:
  void wait() {
    if (++spins_ < kSpins) relax();
    else sched_yield();
  }

 private:
  int spins_ = 0;
};

// For what is held for some dozen instructions: a mutex would put who comes second to sleep.
class SpinLock {
 public:
  void lock() {
    for (Patience patience; held_.exchange(true, std::memory_order_acquire);) patience.wait();
  }
  void unlock() { held_.store(false, std::memory_order_release); }

 private:
  std::atomic<bool> held_{false};
};

class Hold {
 public:
  explicit Hold(SpinLock& lock) : lock_(lock) { lock_.lock(); }
  ~Hold() { lock_.unlock(); }
  Hold(const Hold&) = delete;
  Hold& operator=(const Hold&) = delete;

 private:
  SpinLock& lock_;
};

}  // namespace penstock
