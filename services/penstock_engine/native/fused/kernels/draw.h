// Drawing tokens from logits: the best one, or by inverse transform at a temperature.
#pragma once
#include <algorithm>
#include <limits>

#include "vec.h"

namespace penstock {

// The first of the largest.
inline int32_t best_of(const float* logits, int64_t count) {
  F32x16 most = splat(-std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) most = larger(most, load(logits + i));
  float top = largest(most);
  for (; i < count; i++) top = std::max(top, logits[i]);
  for (i = 0; i + kLanes <= count; i += kLanes) {
    if (largest(load(logits + i)) != top) continue;
    for (int lane = 0; lane < kLanes; lane++)
      if (logits[i + lane] == top) return int32_t(i + lane);
  }
  for (; i < count; i++)
    if (logits[i] == top) return int32_t(i);
  return 0;
}

// Inverse transform in vocabulary order: the first token whose cumulated weight passes
// `point` (in [0, 1)) of the total. Weights of sixteen tokens are summed in float, sixteens in double:
// at 150,000 tokens float would lose the tail.
inline int32_t draw_at(const float* logits, int64_t count, float temperature, double point) {
  const float top = logits[best_of(logits, count)], inverse = 1.0f / temperature;
  auto weights = [&](int64_t at) {
    F32x16 some = splat(-std::numeric_limits<float>::infinity());
    std::memcpy(&some, logits + at, sizeof(float) * std::min<int64_t>(kLanes, count - at));
    return exponential((some - splat(top)) * inverse);
  };
  double total = 0;
  for (int64_t at = 0; at < count; at += kLanes) total += sum(weights(at));
  const double wanted = point * total;
  double before = 0;
  int32_t last = 0;  // with any weight: where rounding leaves the point beyond the end
  for (int64_t at = 0; at < count; at += kLanes) {
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
  return best_of(logits, count);
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
