// Drawing tokens from logits: the best one, or by inverse transform at a temperature.
#pragma once
#include <algorithm>
#include <limits>

#include "vec.h"

namespace penstock {

// A row of logits, sixteen at a time; what is beyond its end or not allowed is minus infinity. `allowed`
// has bit `t % 32` of word `t / 32` for token `t`, or is null.
struct LogitRow {
  const float* logits;
  int64_t count;
  const uint32_t* allowed;

  // Whether any of the sixteen is allowed.
  bool any(int64_t at) const { return !allowed || (allowed[at / 32] >> at % 32 & 0xffff); }

  F32x16 operator[](int64_t at) const {
    const F32x16 never = splat(-std::numeric_limits<float>::infinity());
    if (!any(at)) return never;
    F32x16 some = never;
    if (count - at >= kLanes) some = load(logits + at);
    else std::memcpy(&some, logits + at, sizeof(float) * (count - at));
    if (!allowed) return some;
    const U32x16 bit = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    const uint32_t bits = allowed[at / 32] >> at % 32;
    return (bit & bits) != 0 ? some : never;
  }
};

// The first of the largest. Lanes are compared with each other once a block, and in the best one.
inline int32_t best_of(const LogitRow& row) {
  constexpr int64_t kBlock = 16 * kLanes;
  float top = -std::numeric_limits<float>::infinity();
  int64_t best = 0;
  for (int64_t begin = 0; begin < row.count; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, row.count);
    F32x16 most = splat(top);
    for (int64_t at = begin; at < end; at += kLanes)
      if (row.any(at)) most = larger(most, row[at]);
    const float here = largest(most);
    if (here > top) top = here, best = begin;
  }
  for (int64_t at = best; at < std::min(best + kBlock, row.count); at += kLanes) {
    const F32x16 some = row[at];
    for (int lane = 0; lane < kLanes && at + lane < row.count; lane++)
      if (some[lane] == top) return int32_t(at + lane);
  }
  return 0;
}

// Inverse transform in vocabulary order: the first token whose cumulated weight passes
// `point` (in [0, 1)) of the total. Weights of sixteen tokens are summed in float, sixteens in double:
// at 150,000 tokens float would lose the tail.
inline int32_t draw_at(const LogitRow& row, float temperature, double point) {
  const float top = row.logits[best_of(row)], inverse = 1.0f / temperature;
  auto weights = [&](int64_t at) { return exponential((row[at] - splat(top)) * inverse); };
  double total = 0;
  for (int64_t at = 0; at < row.count; at += kLanes)
    if (row.any(at)) total += sum(weights(at));
  const double wanted = point * total;
  double before = 0;
  int32_t last = 0;  // with any weight: where rounding leaves the point beyond the end
  for (int64_t at = 0; at < row.count; at += kLanes) {
    if (!row.any(at)) continue;
    F32x16 some = weights(at);
    double after = before + sum(some);
    if (after > wanted) {
      for (int lane = 0; lane < kLanes; lane++) {
        if (some[lane] > 0) last = int32_t(at + lane);
        before += some[lane];
        if (before > wanted) break;
      }
      return last;
    }
    before = after;
  }
  return best_of(row);
}

// Sets what is not allowed to minus infinity: bit `t % 32` of word `t / 32` is for token `t`.
inline void forbid(float* logits, int64_t count, const uint32_t* allowed) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  for (int64_t at = 0; at < count; at += 32) {
    const uint32_t word = *allowed++;
    if (word == ~0u) continue;
    const int64_t size = std::min<int64_t>(32, count - at);
    for (int64_t i = 0; i < size; i++) logits[at + i] = word >> i & 1 ? logits[at + i] : kNever;
  }
}

}  // namespace penstock
