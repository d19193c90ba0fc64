// The C interface: nothing but plain structs and pointers crosses it, so no header of Python's or
// torch's is needed and a build takes seconds.
#include "draw.h"
#include "step.h"

namespace {

using namespace penstock;

template <typename Element>
AnyStepper* make(const PenstockModel& model) {
  switch (model.weight_type) {
    case 0: return new Stepper<FloatWeights, Element>(model);
    case 1: return new Stepper<BfloatWeights, Element>(model);
    case 2: return new Stepper<ByteWeights, Element>(model);
  }
  return nullptr;
}

// A follower and whoever does its chores.
struct Followed {
  std::shared_ptr<Chores> chores;
  Follower follower;
};

std::shared_ptr<Chores>* as_chores(void* handle) {
  return static_cast<std::shared_ptr<Chores>*>(handle);
}

// What finding the rows of those that nobody is at will take.
int64_t expected_ns(void* const* followers, int32_t count) {
  int64_t sum = 0;
  for (int32_t i = 0; i < count; i++) {
    auto& [chores, mine] = *static_cast<Followed*>(followers[i]);
    if (chores->idle(mine)) sum += mine.expected_ns();
  }
  return sum;
}

// Whether all rows can be had at once.
bool quick(void* const* followers, int32_t count) {
  for (int32_t i = 0; i < count; i++) {
    auto& [chores, mine] = *static_cast<Followed*>(followers[i]);
    if (!chores->idle(mine)) return false;
  }
  return expected_ns(followers, count) < kWorthHelpNs;
}

// Have rows found in passing if that will take long enough.
void find_later(void* const* followers, int32_t count) {
  const int64_t expected = expected_ns(followers, count);
  if (expected < kWorthHelpNs) return;
  for (int32_t i = 0; i < count; i++) {
    auto& [chores, mine] = *static_cast<Followed*>(followers[i]);
    if (chores->idle(mine) && mine.expected_ns() > 0) chores->post(mine);
  }
  if (expected >= kWorthWakingNs) static_cast<Followed*>(followers[0])->chores->wake();
}

}  // namespace

extern "C" {

// Consecutive weights of a column that stand together in a panel, by type of weights.
int32_t penstock_group(int32_t weight_type) {
  switch (weight_type) {
    case 1: return penstock::BfloatWeights::kGroup;
    case 2: return penstock::ByteWeights::kGroup;
  }
  return penstock::FloatWeights::kGroup;
}

const char* penstock_instructions() {
#if defined(__AVX512F__)
#define PENSTOCK_VECTORS "avx512"
#else
#define PENSTOCK_VECTORS "avx2"
#endif
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define PENSTOCK_VNNI " vnni"
#else
#define PENSTOCK_VNNI ""
#endif
  return PENSTOCK_VECTORS PENSTOCK_VNNI;
}

// A sum of the layout of both structs: a caller whose own differs must not call.
int64_t penstock_layout() { return sizeof(PenstockModel) * 1000 + sizeof(PenstockStep); }

void* penstock_create(const PenstockModel* model) {
  return model->kv_type == 0 ? make<float>(*model) : make<BF16>(*model);
}

void penstock_step(void* stepper, const PenstockStep* step) {
  static_cast<AnyStepper*>(stepper)->step(*step);
}

// A token for each row of logits: the best where the temperature is 0, else by its point in [0, 1).
// `where` names each row's mask among `allowed`, of `words` words each, or is negative; null if none has one.
void penstock_draw(const float* logits, int32_t rows, int64_t vocabulary, const float* temperatures,
                   const double* points, const int32_t* where, const uint32_t* allowed,
                   int64_t words, int32_t* out) {
  for (int32_t row = 0; row < rows; row++) {
    const bool masked = where && where[row] >= 0;
    const penstock::LogitRow mine{logits + row * vocabulary, vocabulary,
                                  masked ? allowed + where[row] * words : nullptr};
    out[row] = temperatures[row] > 0 ? penstock::draw_at(mine, temperatures[row], points[row])
                                     : penstock::best_of(mine);
  }
}

// Forbids tokens in some rows of logits, by one bit a token and `words` words a row.
void penstock_forbid(float* logits, int64_t vocabulary, const int64_t* rows, int32_t count,
                     const uint32_t* allowed, int64_t words) {
  for (int32_t i = 0; i < count; i++)
    penstock::forbid(logits + rows[i] * vocabulary, vocabulary, allowed + i * words);
}

void* penstock_chores(const PenstockGrammar* grammar) {
  return new std::shared_ptr<penstock::Chores>(new penstock::Chores(*grammar));
}

void penstock_end_chores(void* chores) { delete as_chores(chores); }

void* penstock_follower(void* chores, const PenstockFollower* from) {
  return new Followed{*as_chores(chores), {(*as_chores(chores))->grammar, *from}};
}

void penstock_end_follower(void* follower) {
  auto* mine = static_cast<Followed*>(follower);
  mine->chores->await(mine->follower);
  delete mine;
}

// Tell tokens, none where negative, and hear what comes of each and how many can be foreseen; what may
// follow is found out in passing if that will take long enough. Does not wait: kBusy where it had to.
void penstock_follow_each(void* const* followers, const int32_t* tokens, int32_t count,
                          int8_t* states, int32_t* foreseen) {
  for (int32_t i = 0; i < count; i++) {
    auto& [chores, mine] = *static_cast<Followed*>(followers[i]);
    if (tokens[i] >= 0) states[i] = int8_t(chores->recall(mine) ? mine.take(tokens[i]) : kBusy);
    foreseen[i] = mine.foreseen();
  }
  find_later(followers, count);
}

// As many tokens as were said to be foreseen.
void penstock_foretell(void* follower, uint32_t* to) {
  static_cast<Followed*>(follower)->follower.foretell(to);
}

// How many of these tokens could follow; kBusy as above.
int32_t penstock_permitted(void* follower, const uint32_t* tokens, int32_t count) {
  auto& [chores, mine] = *static_cast<Followed*>(follower);
  if (!chores->recall(mine)) return kBusy;
  return mine.permitted(tokens, count);
}

void penstock_await(void* follower) {
  auto& [chores, mine] = *static_cast<Followed*>(follower);
  chores->await(mine);
}

// Ask for rows of followers, `counts[i]` drafts of each behind its tokens; they are found out from now on.
void penstock_ask(void* const* followers, const int32_t* counts, const uint32_t* drafts,
                  int32_t count) {
  for (int32_t i = 0; i < count; drafts += counts[i++]) {
    auto& [chores, mine] = *static_cast<Followed*>(followers[i]);
    chores->await(mine);
    mine.draft(drafts, counts[i]);
  }
  find_later(followers, count);
}

// Their rows, `counts[i]` behind each one's tokens and none if counts is null: masks, and why a sample
// ends there. How many end; if `waits` is 0, kBusy where some are being found or will take long to find.
int32_t penstock_answer(void* const* followers, const int32_t* counts, int32_t count,
                        uint32_t* masks, int8_t* ends, int32_t waits) {
  if (!waits && !quick(followers, count)) return kBusy;
  int32_t ended = 0;
  for (int32_t i = 0; i < count; i++) {
    auto& [chores, mine] = *static_cast<Followed*>(followers[i]);
    const int rows = 1 + (counts ? counts[i] : 0);
    if (waits) chores->await(mine);
    mine.give(rows, masks, ends);
    for (int row = 0; row < rows; row++) ended += ends[row] != kOpen;
    masks += rows * mine.words();
    ends += rows;
  }
  return ended;
}

void penstock_destroy(void* stepper) { delete static_cast<AnyStepper*>(stepper); }
}
