// What may follow a constrained sample's tokens. A follower is one sample's: it is told each token, and its
// mask is asked for before the next draw.
//
// The grammars are another library's, behind its C interface, so none of this needs Python's lock. What
// has to be done for a follower is done by one thread at a time; chores.h says by whom.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <vector>

extern "C" {

// What is used of llguidance's C interface (llguidance.h there): 0 is success, -1 failure.
struct PenstockGrammar {
  int32_t (*mask)(void* matcher, uint32_t* to, size_t bytes);
  int32_t (*consume)(void* matcher, uint32_t token);
  int32_t (*validate)(void* matcher, const uint32_t* tokens, size_t count);
  int32_t (*rollback)(void* matcher, size_t count);
  bool (*stopped)(const void* matcher);
  bool (*failed)(const void* matcher);
  int32_t (*forced)(void* matcher, uint32_t* to, size_t room);
};

struct PenstockFollower {
  void* matcher;
  const int32_t* stops;  // [num_stops]: tokens that end the sample, open where the grammar may end
  int32_t num_stops;
  int32_t min_tokens;  // of output before a stop token is open
  int32_t followed;    // tokens of output so far
  int32_t vocabulary;
  int32_t foresight;  // tokens to look for that alone may follow; 0 if nobody will ask
};
}

namespace penstock {

constexpr int64_t kWorthHelpNs = 15'000;  // what a thread's coming late to a step takes

enum Following : int32_t { kBusy = -1, kOpen = 0, kComplete = 1, kBroken = 2 };

// What `Follower::heard` is besides a token and what came of it.
enum : int64_t { kUntold = -1, kUnheard = -2 };

// What may follow a sample's tokens, and each of its drafts.
class Follower {
 public:
  Follower(const PenstockGrammar& grammar, const PenstockFollower& from)
      : grammar_(grammar),
        matcher_(from.matcher),
        stops_(from.stops, from.stops + from.num_stops),
        min_tokens_(from.min_tokens),
        followed_(from.followed),
        vocabulary_(from.vocabulary),
        words_(from.vocabulary / 32 + 1),
        ahead_(from.foresight) {}

  int64_t words() const { return words_; }

  // The token that was drawn last, and what came of it: a Following from bit 32 on, from bit 40 on how many
  // tokens can be foreseen behind it. The only part that may be read by a thread that does not
  // have the follower for itself (Python's reads it in place), so it is all there or not there.
  std::atomic<int64_t> heard{kUntold};
  bool unheard() const { return heard.load(std::memory_order_acquire) == kUnheard; }

  // The sample has one token more, to be taken in by who hears of it; `may_look` if it pays to look ahead now.
  void tell(uint32_t token, bool may_look) {
    told_ = token;
    may_look_ = may_look;
    heard.store(kUnheard, std::memory_order_relaxed);  // others see it no sooner than they get the follower
  }

  void hear() {
    const int64_t came = take(told_), ahead = foreseen_;
    heard.store(ahead << 40 | came << 32 | told_, std::memory_order_release);
  }

  // Whether to hear means to cut bytes into tokens, too, which needs Python's lock.
  bool looks_ahead() const {
    return may_look_ && !ahead_.empty() && (no_choice_ || !drafts_.empty());
  }

  // Whether a token that its mask allowed ends the sample, so that nothing follows it.
  bool stops_at(uint32_t token) const {
    return std::find(stops_.begin(), stops_.end(), int32_t(token)) != stops_.end();
  }

  // Tokens that alone may follow, in order. To look takes longer than most masks, so that is done only
  // behind a token that there was no choice about either.
  void foretell(uint32_t* to) const { std::copy_n(ahead_.begin(), foreseen_, to); }

  int permitted(const uint32_t* tokens, int count) {
    return std::max(grammar_.validate(matcher_, tokens, count), 0);
  }

  void draft(const uint32_t* tokens, int count) {
    drafts_.assign(tokens, tokens + count);
    ready_ = std::min(ready_, 1);
  }

  bool ready() const { return ready_ > int(drafts_.size()); }

  // What the rows that are not known yet will probably take to find; the last ones tell.
  int64_t expected_ns() const {
    return ready() || state_ != kOpen ? 0 : row_ns_ * (1 + int64_t(drafts_.size()) - ready_);
  }

  // Find the rows that are not known yet: behind the sample's tokens, and behind each draft.
  void find() {
    const auto began = std::chrono::steady_clock::now();
    const int rows = 1 + int(drafts_.size()), unknown = rows - ready_;
    masks_.resize(rows * words_);
    ends_.resize(rows);
    if (ready_ == 0) find_row(0, true);
    size_t taken = 0;
    for (int row = 1; row < rows; row++) {
      const uint32_t* next = &drafts_[row - 1];
      bool reached = taken + 1 == size_t(row) && !grammar_.stopped(matcher_) &&
                     grammar_.validate(matcher_, next, 1) == 1 &&
                     grammar_.consume(matcher_, *next) == 0;
      taken += reached;
      find_row(row, reached);
    }
    if (taken && grammar_.rollback(matcher_, taken) != 0) ends_[0] = kBroken;
    ready_ = rows;
    const std::chrono::nanoseconds taken_ns = std::chrono::steady_clock::now() - began;
    row_ns_ += (taken_ns.count() / std::max(unknown, 1) - row_ns_) / 4;
  }

  // What may follow behind so many of the drafts that were asked for, and why the sample ends there
  // (a Following). The mask stays where it is until the next token or question.
  const uint32_t* mask(int drafts) {
    if (!ready()) find();
    return &masks_[drafts * words_];
  }
  int8_t end(int drafts) const { return ends_[drafts]; }
  int followed() const { return followed_; }

  std::atomic<int> chore{0};  // see Chores

 private:
  Following take(uint32_t token) {
    const bool looks = looks_ahead();
    ready_ = 0;
    drafts_.clear();
    followed_++;
    state_ = grammar_.consume(matcher_, token) != 0 || grammar_.failed(matcher_) ? kBroken
             : grammar_.stopped(matcher_)                                        ? kComplete
                                                                                 : kOpen;
    foreseen_ = 0;
    if (state_ == kOpen && looks)
      foreseen_ = std::max(grammar_.forced(matcher_, ahead_.data(), ahead_.size()), 0);
    return state_;
  }

  // A row where nothing may follow stays open, and says why its sample ends instead.
  void find_row(int row, bool reached) {
    uint32_t* allowed = &masks_[row * words_];
    std::fill_n(allowed, words_, 0u);
    bool fine = reached && grammar_.mask(matcher_, allowed, words_ * 4) == 0 &&
                !grammar_.failed(matcher_);
    const uint32_t last = 1u << vocabulary_ % 32;
    const bool may_end = fine && (allowed[words_ - 1] & last);
    allowed[words_ - 1] &= last - 1;
    const bool stops = may_end && followed_ + row >= min_tokens_;
    for (int32_t token : stops_) {
      uint32_t& word = allowed[token / 32];
      word = (word & ~(1u << token % 32)) | uint32_t(stops) << token % 32;
    }
    int64_t choices = 0;
    for (int64_t i = 0; i < words_; i++) choices += __builtin_popcount(allowed[i]);
    no_choice_ = choices == 1;
    ends_[row] = choices ? kOpen : may_end ? kComplete : kBroken;
    if (!choices) std::fill_n(allowed, words_, ~0u);
  }

  const PenstockGrammar grammar_;
  void* const matcher_;
  const std::vector<int32_t> stops_;
  const int min_tokens_;
  int followed_;
  const int vocabulary_;
  const int64_t words_;
  std::vector<uint32_t> ahead_, drafts_, masks_;
  uint32_t told_ = 0;
  int foreseen_ = 0;
  bool may_look_ = true;
  bool no_choice_ = false;  // about the token behind the last row found
  std::vector<int8_t> ends_;
  Following state_ = kOpen;
  int ready_ = 0;  // rows that are known
  int64_t row_ns_ = kWorthHelpNs;
};

}  // namespace penstock
