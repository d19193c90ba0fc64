// The C interface: nothing but plain structs and pointers crosses it, so no header of Python's or
// torch's is needed and a build takes seconds.
#include <algorithm>

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

Followed& as_followed(void* handle) { return *static_cast<Followed*>(handle); }

// Have masks found by threads that watch or, if that will take long enough, come to the next step. Some
// handles may be null.
void find_later(void* const* followers, int32_t count) {
  int64_t expected = 0;
  Chores* all = nullptr;
  for (int32_t i = 0; i < count; i++) {
    if (!followers[i]) continue;
    auto& [chores, mine] = as_followed(followers[i]);
    all = chores.get();
    if (chores->idle(mine)) expected += mine.expected_ns();
  }
  if (!expected || (expected < kWorthHelpNs && !all->watched())) return;
  for (int32_t i = 0; i < count; i++) {
    if (!followers[i]) continue;
    auto& [chores, mine] = as_followed(followers[i]);
    if (chores->idle(mine) && mine.expected_ns() > 0) chores->post(mine);
  }
  if (expected >= kWorthWakingNs && !all->watched()) all->wake();
}

// A follower for the caller alone, who does not hold Python's lock.
Follower& taken(void* handle) {
  auto& [chores, mine] = as_followed(handle);
  chores->await(mine);
  if (mine.unheard()) mine.hear();
  return mine;
}

int32_t draw_row(const LogitRow& row, float temperature, double point) {
  return temperature > 0 ? draw_at(row, temperature, point) : best_of(row);
}

// To look ahead takes longer than a mask and this thread's time, and what is foreseen goes through a step as rows
// of its own, which in larger batches cost what tokens do. So it pays for so many at most.
constexpr int kFewFollowed = 8;

// A follower hears of its token and finds what may follow on another thread if one would begin at once.
void tell(Followed& followed, uint32_t token, bool may_look) {
  auto& [chores, mine] = followed;
  mine.tell(token, may_look);
  if (chores->watched() && !mine.looks_ahead()) return chores->post(mine);
  mine.hear();
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
    const uint32_t* mask = masked ? allowed + where[row] * words : nullptr;
    out[row] = draw_row({logits + row * vocabulary, vocabulary, mask}, temperatures[row], points[row]);
  }
}

// The same under what followers allow, null for a row that has none: `drafts[row]` names the one of its rows,
// negative where it has no drafts; all are without if drafts is null. Those hear of their tokens. `ends` says
// why a sample ends instead; how many do.
int32_t penstock_draw_followed(const float* logits, int32_t rows, int64_t vocabulary,
                               const float* temperatures, const double* points,
                               void* const* followers, const int32_t* drafts, int32_t* out,
                               int8_t* ends) {
  int32_t ended = 0;
  const bool few = rows - std::count(followers, followers + rows, nullptr) <= kFewFollowed;
  for (int32_t row = 0; row < rows; row++) {
    void* handle = followers[row];
    Follower* mine = handle ? &taken(handle) : nullptr;
    const int at = drafts ? std::max(drafts[row], 0) : 0;
    const uint32_t* mask = mine ? mine->mask(at) : nullptr;
    out[row] = draw_row({logits + row * vocabulary, vocabulary, mask}, temperatures[row], points[row]);
    ends[row] = mine ? mine->end(at) : kOpen;
    ended += ends[row] != kOpen;
    const bool is_told = mine && ends[row] == kOpen && (!drafts || drafts[row] < 0);
    if (is_told && !mine->stops_at(out[row])) tell(as_followed(handle), out[row], few);
  }
  find_later(followers, rows);
  return ended;
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

// How many tokens it followed; kBusy while somebody is at its chore. That may be this very thread: to cut bytes
// into tokens it runs Python, which may find just then that nobody holds this follower any more.
int32_t penstock_end_follower(void* follower) {
  auto* mine = static_cast<Followed*>(follower);
  if (!mine->chores->recall(mine->follower)) return kBusy;
  const int32_t followed = mine->follower.followed();
  delete mine;
  return followed;
}

// Where its `heard` can be read at any time, and set to kUntold once it says something.
const void* penstock_heard(void* follower) { return &as_followed(follower).follower.heard; }

// What came of a token, which its follower is told if it was not told its draw. Does not wait for more than a
// stage's length: kUnheard where it had to.
int64_t penstock_hear(void* follower, uint32_t token) {
  auto& [chores, mine] = as_followed(follower);
  for (int spins = 0; spins < kSpins; spins++, relax()) {
    const int64_t heard = mine.heard.load(std::memory_order_acquire);
    if (heard >= 0) return heard;
    if (!chores->recall(mine)) continue;
    if (mine.heard.load(std::memory_order_acquire) == kUntold) mine.tell(token, true);
    if (mine.unheard()) mine.hear();
    find_later(&follower, 1);
  }
  return kUnheard;
}

// As many tokens as were said to be foreseen.
void penstock_foretell(void* follower, uint32_t* to) { as_followed(follower).follower.foretell(to); }

// How many of these tokens could follow; kBusy where that had to wait for who is at its chore.
int32_t penstock_permitted(void* follower, const uint32_t* tokens, int32_t count) {
  auto& [chores, mine] = as_followed(follower);
  if (!chores->recall(mine)) return kBusy;
  return mine.permitted(tokens, count);
}

void penstock_await(void* follower) {
  auto& [chores, mine] = as_followed(follower);
  chores->await(mine);
}

// Ask for rows of followers, `counts[i]` drafts of each behind its tokens; they are found out from now on.
void penstock_ask(void* const* followers, const int32_t* counts, const uint32_t* drafts,
                  int32_t count) {
  for (int32_t i = 0; i < count; drafts += counts[i++]) taken(followers[i]).draft(drafts, counts[i]);
  find_later(followers, count);
}

// Copies of rows' masks, named as for penstock_draw_followed, and why their samples end there.
void penstock_answer(void* const* followers, const int32_t* drafts, int32_t count, uint32_t* masks,
                     int8_t* ends) {
  for (int32_t i = 0; i < count; i++) {
    Follower& mine = taken(followers[i]);
    const int at = drafts ? std::max(drafts[i], 0) : 0;
    masks = std::copy_n(mine.mask(at), mine.words(), masks);
    ends[i] = mine.end(at);
  }
}

void penstock_destroy(void* stepper) { delete static_cast<AnyStepper*>(stepper); }
}
