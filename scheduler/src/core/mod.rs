//! The pure core: commands in, effects out. No clock, socket or lock: time comes with each command.
//!
//! - [`api`]: what is said to the core and by it.
//! - [`ticket`]: a ticket, as it is stored.
//!
//! ```text
//!            grant           use            last clone ended
//!  waiting ─────────▶ granted ───▶ used ─────────────────────▶ released
//!     │                │  ▲  │      │                             ▲
//!     │ time is over,  │  │  │ TTL  │ its host went away          │ given back
//!     │ caller left    │  │  ▼      ▼                             │
//!     ▼                │  │ expired fenced                        │
//!  refused             └──┴───────────────────────────────────────┘
//!                     unuse: nothing was made
//! ```

pub mod api;
pub mod ticket;
